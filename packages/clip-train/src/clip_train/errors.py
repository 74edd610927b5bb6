"""The exception family of clip-train."""

from clip_core import ClipError


class ClipTrainError(ClipError):
    """A mistake of the user or a broken input: the message names the offending value and the way out."""


class RankLost(ClipTrainError):
    """A rank did not come, does not answer or has ended; raised, and printed, by each rank that waited for it."""


class Requeue(SystemExit):
    """Training stopped on SIGTERM or SIGUSR1 after a checkpoint: run the same command again to continue.

    A SystemExit, so that a script that does not catch it ends with the exit code that asks for a requeue.
    """

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"

    def __init__(self, step: int) -> None:
        super().__init__(self.EXIT_CODE)
        self.step = step


class Stopped(SystemExit):
    """A stop signal came before there was a checkpoint: the same command starts the run again."""

    EXIT_CODE = 143  # what a shell reports for a process that SIGTERM has ended

    def __init__(self) -> None:
        super().__init__(self.EXIT_CODE)
