"""A shard: a tar whose bytes follow from its members alone, and the sidecar that says where each of them lies."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.files import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa


class TarWriter:
    """Writes a ustar archive: members in the order of `add`, no times, no owners. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._file:
            if kind is None:
                self._write(bytes(2 * tarfile.BLOCKSIZE))
                self._write(bytes(-self.size % tarfile.RECORDSIZE))

    def add(self, name: str, payload: bytes) -> tuple[int, int]:
        """Appends a member of at most 100 characters of name; (offset, length) of its payload in the archive."""
        info = tarfile.TarInfo(name)
        info.size = len(payload)
        info.mode = 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(payload)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return offset, len(payload)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


def verify(path: Path, sha256: str, members: list[tuple[str, int, int]]) -> None:
    """Reads a finished shard back. Raises OSError unless it holds exactly `members` (name, offset, length) and bytes
    with the hash that were meant to be written.
    """
    with tarfile.open(path, "r:") as tar:
        found = [(member.name, member.offset_data, member.size) for member in tar]
    if sha256_of(path) != sha256 or found != members:
        raise OSError(f"{path} does not hold what was written to it: the disk under it is not reliable")


def sidecar_schema() -> pa.Schema:
    """The sidecar's own columns; the source's extra columns follow after them."""
    import pyarrow as pa

    return pa.schema(
        [
            ("uid", pa.binary(16)),
            ("key", pa.string()),
            ("url", pa.string()),
            ("caption", pa.string()),
            ("status", pa.string()),
            ("error_class", pa.string()),
            ("error", pa.string()),
            ("http_status", pa.int16()),
            ("optout", pa.string()),
            ("redirects", pa.int8()),
            ("content_type", pa.string()),
            ("bytes", pa.int64()),
            ("sha256", pa.binary(32)),
            ("original_format", pa.string()),
            ("original_width", pa.int32()),
            ("original_height", pa.int32()),
            ("exif_orientation", pa.int8()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("image_ext", pa.string()),
            ("image_offset", pa.int64()),
            ("image_length", pa.int64()),
            ("text_offset", pa.int64()),
            ("text_length", pa.int64()),
            ("json_offset", pa.int64()),
            ("json_length", pa.int64()),
        ]
    )
