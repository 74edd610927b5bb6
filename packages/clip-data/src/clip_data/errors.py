"""The exception family of clip-data."""

from clip_core import ClipError


class ClipDataError(ClipError):
    """A mistake of the user or invalid input. The message names the offending value and what to do."""
