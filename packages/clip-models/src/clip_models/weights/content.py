"""What a file is by its first bytes: one of the formats that weights are read from, or what was saved in their place.

Free of torch.
"""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

_HEAD = 4096
_LFS = (b"version https://git-lfs.github.com/", b"version https://hawser.github.com/", b"/annex/objects/")
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<title", b"<meta", b"<script")
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that torch.save began its files with before they were zip archives."""
_UNPACK = "unpack it and name the weights file in it"
_CONVERT = "convert it to safetensors"
_MAGIC = (
    (0, b"\x1f\x8b", f"a gzip archive; {_UNPACK}"),
    (0, b"BZh", f"a bzip2 archive; {_UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"an xz archive; {_UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"a zstd archive; {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (0, b"Rar!", f"a rar archive; {_UNPACK}"),
    (257, b"ustar", f"a tar archive; {_UNPACK}"),
    (0, b"GGUF", f"a GGUF model of llama.cpp; {_CONVERT}"),
    (0, b"lmgg", f"a GGML model of llama.cpp; {_CONVERT}"),
    (0, b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as of Keras; {_CONVERT}"),
    (4, b"TFL3", f"a TensorFlow Lite model; {_CONVERT}"),
    (0, b"\x93NUMPY", "a single NumPy array; weights of NumPy are read from .npz"),
    (0, b"PAR1", "a parquet table; name the weights file"),
    (0, b"%PDF", "a PDF document; name the weights file"),
    (0, b"\x89PNG", "an image; name the weights file"),
    (0, b"\xff\xd8\xff", "an image; name the weights file"),
    (0, bytes(64), "a file that begins with zeros, as an interrupted download leaves it; fetch it again"),
)  # fmt: skip
_FOREIGN_NAMES = (
    (r"\.onnx$", f"an ONNX graph; {_CONVERT}"),
    (r"\.pb$", f"a TensorFlow graph; {_CONVERT}"),
    (r"\.data-\d+-of-\d+$|\.ckpt.*\.(index|meta)$", f"a part of a TensorFlow checkpoint; {_CONVERT}"),
    (r"\.(pdparams|pdopt)$", f"a PaddlePaddle checkpoint; {_CONVERT}"),
    (r"\.msgpack$", f"a Flax checkpoint; {_CONVERT}"),
    (r"\.distcp$", "a part of a sharded torch.distributed checkpoint; export it to safetensors"),
)
"""Formats without a mark of their own at the start."""
_ONNX = re.compile(rb"\x08[\x03-\x14]\x12[\x01-\x40][ -~]+")


class Content(NamedTuple):
    """What a file holds."""

    format: str = ""
    """ "safetensors", "torch" or "npz"; "" where the bytes do not say."""
    foreign: str = ""
    """What it is instead of weights and what to do about it, to follow "is"; "" for weights and the unknown."""


def inspect(path: Path) -> Content:
    """The content of an existing file. OSError if it cannot be read; it need not be whole."""
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
    for offset, magic, what in _MAGIC:
        if head.startswith(magic, offset):
            return Content(foreign=what)
    for pattern, what in _FOREIGN_NAMES:
        if re.search(pattern, path.name):
            return Content(foreign=what)
    if _ONNX.match(head):
        return Content(foreign=f"an ONNX graph; {_CONVERT}")
    return Content(foreign=_text(head, path))


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
    inside = ", ".join(sorted(names)[:3])
    return Content(foreign=f"a zip archive without weights of PyTorch or NumPy (in it: {inside}); {_UNPACK}")


def _text(head: bytes, path: Path) -> str:
    """What a text is; "" for bytes that are none, and for the JSON of an index."""
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
