"""The exception family of this package."""


class ClipModelsError(ValueError):
    """Something the caller can put right: a name, a value, a file. The message is one line and says how."""
