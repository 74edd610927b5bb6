"""The exception family of clip-train."""


class ClipTrainError(ValueError):
    """A mistake of the user or a broken input: the message names the offending value and the way out."""


class Requeue(SystemExit):
    """Training stopped on SIGTERM or SIGUSR1 after a checkpoint: run the same command again to continue.

    A SystemExit, so that a script that does not catch it ends with the exit code that asks for a requeue.
    """

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"

    def __init__(self, step: int) -> None:
        super().__init__(self.EXIT_CODE)
        self.step = step
