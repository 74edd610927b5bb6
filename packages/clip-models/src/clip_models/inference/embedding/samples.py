"""The items of sources: samples, and names of what is not used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm",
    ".ico", ".tga", ".qoi",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image, a caption, or both; an absent one is None. A callable returns the value when it is called."""

    key: str
    image: Any = None
    """a path, the bytes of a file, a Pillow image, or a callable that returns bytes"""
    text: Any = None
    """a caption, its bytes, or a callable that returns its bytes"""
    caption_field: str = ""
    """field of `text`, a JSON object, that holds the caption"""
    in_turn: bool = False
    """the callables are valid only until the next sample is requested"""
    problem: tuple[str, str] | None = None
    """code and reason, if the sample is rejected already"""


@dataclass(frozen=True)
class Unused:
    """A file, a member of a tar, or a line that is in no sample, or in a part of one that is not requested."""

    name: str
    reason: str
    """not_asked, other_image, other_text, hidden (the name begins with a dot), link, not_a_file, no_extension,
    no_image, not_opened, blank_line, or the code with which its sample is rejected"""


class SampleError(Exception):
    """A sample that is rejected; `code` as in `EmbedSummary.rejected`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def read_caption(value: Any, json_field: str = "") -> str:
    """Returns the caption in a string or bytes, or in a field of a JSON object. Raises SampleError."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig").strip("\r\n")
        except UnicodeDecodeError as error:
            raise SampleError("bad_caption", f"the caption is not UTF-8: {error.reason} at {error.start}") from error
    if value is not None and json_field:
        try:
            fields = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise SampleError("bad_caption", f"the caption's member is not JSON: {error}") from error
        if not isinstance(fields, dict) or json_field not in fields:
            known = ", ".join(fields) if isinstance(fields, dict) else "no fields"
            raise SampleError("no_caption", f"the JSON has no field {json_field!r}; it has {known[:200]}")
        value = fields[json_field]
    if value is None:
        raise SampleError("no_caption", "there is no caption")
    if not isinstance(value, str):
        raise SampleError("no_caption", f"the caption is of type {type(value).__name__}, not a string")
    if not value.strip():
        raise SampleError("empty_caption", "the caption is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SampleError("bad_caption", f"the caption holds half a character at {error.start}") from error
    return value
