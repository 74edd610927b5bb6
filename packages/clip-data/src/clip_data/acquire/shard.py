"""A shard: a tar whose bytes depend on its members only."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

from clip_core.files import sha256_of


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
        """Appends a member, its name of at most 100 characters. Returns (offset, length) of its payload in the tar."""
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
    """Reads a finished shard. Raises OSError unless it has exactly `members` (name, offset, length) and the hash."""
    with tarfile.open(path, "r:") as tar:
        found = [(member.name, member.offset_data, member.size) for member in tar]
    if sha256_of(path) != sha256 or found != members:
        raise OSError(f"{path} does not hold what was written to it: the disk under it is not reliable")
