"""The exception family of this package."""

from clip_core import ClipError


class ClipModelsError(ClipError):
    """Something the caller can put right: a name, a value, a file. The message is one line and says how."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's exception says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
