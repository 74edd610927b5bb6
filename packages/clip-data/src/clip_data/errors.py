"""The exception family of clip-data."""

from clip_core import ClipError


class ClipDataError(ClipError):
    """A mistake of the user or a broken input: the message names the offending value and the way out."""
