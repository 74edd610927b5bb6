"""The exception family of clip-eval."""


class ClipEvalError(ValueError):
    """A mistake of the user or a broken input: the message names the offending value and the way out."""
