"""The exceptions whose cause a user can remove."""


class ClipError(ValueError):
    """A name, a value or a file that has to change. The message is one line and says how."""


class ImageError(ClipError):
    """An image that cannot be used. `code` names the reason: missing, too_large, undecodable or pixel_format."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
