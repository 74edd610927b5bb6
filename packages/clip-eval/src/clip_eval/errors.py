"""The exception family of clip-eval."""

from clip_core import ClipError


class ClipEvalError(ClipError):
    """A mistake of the user or a broken input. The message names the offending value and what to do."""
