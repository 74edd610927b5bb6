"""Recognises a file by its first bytes: a format of weights, or something else that was saved instead.

Free of torch.
"""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from clip_models.tables import read_table

_HEAD = 4096
_LFS = (b"version https://git-lfs.github.com/", b"version https://hawser.github.com/", b"/annex/objects/")
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<title", b"<meta", b"<script")
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that torch.save began its files with before they were zip archives."""
_ONNX = re.compile(rb"\x08[\x03-\x14]\x12[\x01-\x40][ -~]+")


class Content(NamedTuple):
    """The content of a file."""

    format: str = ""
    """ "safetensors", "torch" or "npz"; "" where the bytes do not say."""
    foreign: str = ""
    """What it is instead of weights and what to do, to follow "is"; "" for weights and unknown bytes."""


def inspect(path: Path) -> Content:
    """Returns the content of an existing file, which may be incomplete. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Content(foreign="empty (0 bytes); fetch it again")
    if head.startswith(b"PK\x03\x04"):
        return _inspect_zip(path)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return Content("safetensors")
    if head.startswith(_LEGACY_TORCH):
        return Content("torch")
    if re.match(rb"\x80[\x02-\x05]", head):
        return Content(
            foreign="a pickle that torch.save did not write, which is more than tensors and never unpickled; save its"
            " state dict alone with torch.save"
        )
    if head.startswith(bytes(64)):
        return Content(foreign="a file that begins with zeros, as after an interrupted download; fetch it again")
    table = read_table("foreign_files")
    known = [entry for entry in table["magic"] if head.startswith(bytes.fromhex(entry["hex"]), entry.get("offset", 0))]
    known += [entry for entry in table["names"] if re.search(entry["pattern"], path.name)]
    known += [table["names"][0]] if _ONNX.match(head) else []
    return Content(foreign=known[0]["what"].format(**table) if known else _text(head, path))


def _inspect_zip(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return Content()  # cut off: the reader says so
    if any(name.endswith(("data.pkl", "constants.pkl")) for name in names):
        return Content("torch")
    if not names or any(name.endswith(".npy") for name in names):
        return Content("npz")
    inside, unpack = ", ".join(sorted(names)[:3]), read_table("foreign_files")["unpack"]
    return Content(foreign=f"a zip archive without weights of PyTorch or NumPy (in it: {inside}); {unpack}")


def _text(head: bytes, path: Path) -> str:
    """Returns what a text is; "" for other bytes, and for the JSON of an index."""
    if any(head.startswith(mark) for mark in _LFS):
        size = re.search(rb"\nsize (\d+)", head)
        of = f" to {int(size[1])} bytes" if size else ""
        return f"a Git LFS pointer{of} and not the file itself; run 'git lfs pull' in its repository"
    if re.search(rb"[\x00-\x08\x0e-\x1a]", head):
        return ""
    try:
        text = head[:-3].decode() if len(head) == _HEAD else head.decode()  # a character may be cut at the end
    except UnicodeDecodeError:
        return ""
    text = text.lstrip("\ufeff \t\r\n")
    bare = text
    while bare.startswith("<!--") and "-->" in bare:
        bare = bare.partition("-->")[2].lstrip()
    bare = " ".join(bare.split())
    excerpt = " ".join(text.split())[:80]
    again = "fetch the file itself, not a page about it"
    if bare.lower().encode().startswith(_HTML):
        title = re.search(r"<title[^>]*>([^<]{1,80})", bare, re.IGNORECASE)
        return f"an HTML page ({title[1].strip() if title else excerpt}); {again}"
    if bare.startswith("<"):
        code = re.search(r"<(?:Code|Message)>([^<]{1,80})", bare)
        return f"an XML document ({code[1] if code else excerpt}); {again}"
    if bare.startswith(("{", "[")):
        return "" if path.name.endswith(".index.json") else f"JSON ({excerpt}); {again}"
    return "" if path.name.endswith(".index.json") else f"text ({excerpt}); {again}"
