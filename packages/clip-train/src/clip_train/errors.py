"""The exception family of clip-train."""

from clip_core import ClipError


class ClipTrainError(ClipError):
    """A user error or an invalid input. The message names the offending value and what to do."""


class RankLost(ClipTrainError):
    """A rank did not join, does not answer or has ended. Each rank that waited for it raises and prints it."""


class Requeue(SystemExit):
    """Training stopped on SIGTERM or SIGUSR1 after a checkpoint. The same command continues the run.

    It is a SystemExit: a script that does not catch it ends with the exit code that asks for a requeue.
    """

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"

    def __init__(self, step: int) -> None:
        super().__init__(self.EXIT_CODE)
        self.step = step


class Stopped(SystemExit):
    """Training stopped on a signal before the first checkpoint. The same command starts the run again."""

    EXIT_CODE = 143  # the code that a shell reports for a process ended by SIGTERM

    def __init__(self) -> None:
        super().__init__(self.EXIT_CODE)
