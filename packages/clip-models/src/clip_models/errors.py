"""The exception family of this package."""

import os
import re
from pathlib import Path

from clip_core import ClipError


class ClipModelsError(ClipError):
    """Something the caller can put right: a name, a value, a file. The message is one line and says how."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's exception says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def local_path(path: str | os.PathLike[str], name: str) -> Path:
    """The path of an output. Raises ClipModelsError for a URL, which would become a local folder such as `s3:`."""
    text = os.fspath(path)
    if not text:
        raise ClipModelsError(f"{name} is empty; give it a path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ClipModelsError(
            f"{name} {text!r} is a URL: give a path of a local or shared file system, and copy it after"
        )
    return Path(text)
