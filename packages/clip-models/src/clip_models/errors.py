"""The exception family of this package."""

import os
import re
from pathlib import Path
from typing import Any

from clip_core import ClipError, Registry


class ClipModelsError(ClipError):
    """An error that the caller can correct: a name, a value, a file. The message is one line and says how."""


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of another library's exception, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def local_path(path: str | os.PathLike[str], name: str) -> Path:
    """Returns the path of an output. Raises ClipModelsError for a URL, which would make a folder such as `s3:`."""
    text = os.fspath(path)
    if not text:
        raise ClipModelsError(f"{name} is empty; give it a path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ClipModelsError(f"{name} {text!r} is a URL: give a path of a local or shared file system, and copy it")
    return Path(text)


def registered(registry: Registry[Any], name: str) -> Any:
    """Returns the implementation of that name. Raises ClipModelsError if there is none."""
    try:
        return registry.get(name)
    except ClipError as error:
        raise ClipModelsError(str(error)) from error
