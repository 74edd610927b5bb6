"""The exception family of clip-eval."""

from clip_core import ClipError


class ClipEvalError(ClipError):
    """A mistake of the user or a broken input: the message names the offending value and the way out."""
