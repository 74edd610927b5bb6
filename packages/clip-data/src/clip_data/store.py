"""A folder on any fsspec file system in which nothing partial ever stands under a final name."""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clip_data.errors import ClipDataError

if TYPE_CHECKING:
    import pyarrow as pa

CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
WAYS_OUT: dict[int | str, str] = {
    errno.ENOSPC: "free some space, or choose another folder, and run again",
    errno.EDQUOT: "free some space, or choose another folder, and run again",
    errno.EFBIG: "raise the limit of a file's size ('ulimit -f'), or choose another folder",
    errno.EMFILE: "raise the limit of open files ('ulimit -n') or lower concurrency",
    "FileNotFoundError": "create it, or choose another folder",
    "NoCredentialsError": CREDENTIALS,
    "PartialCredentialsError": CREDENTIALS,
    "EndpointConnectionError": "check AWS_ENDPOINT_URL, the region and the network",
    "ConnectTimeoutError": "check AWS_ENDPOINT_URL, the region and the network",
}
"""What helps, by errno or by the name of an S3 client's error."""
TEMPORARY = ".tmp-"  # prefix of files under construction; never listed, swept by no one but their writer


class Store:
    """A folder addressed by an fsspec URL (`/data/run`, `s3://bucket/run`, `memory://x`); names are relative to it.

    Writes are atomic: a local file is renamed into place, an object appears when its upload is complete.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        import fsspec

        if not os.fspath(url):
            raise ClipDataError("the name of a folder is empty: give a path or an fsspec URL")
        self.url = os.fspath(url).rstrip("/") or "/"
        protocol, colon, rest = self.url.partition(":")
        if colon and not rest.startswith(("//", ":")) and protocol in fsspec.available_protocols():
            raise ClipDataError(f"{os.fspath(url)!r} names no folder: write {protocol}://bucket/folder")
        try:
            self.fs, path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ClipDataError(f"cannot open the folder {self.url!r}: {error}") from error
        self.path = str(path).rstrip("/")
        self.local = "file" in ((self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url,)

    def full(self, name: str) -> str:
        """The file system's own path of `name`."""
        return f"{self.path}/{name}" if name else self.path

    @contextmanager
    def _trying(self, act: str, name: str) -> Iterator[None]:
        """Turns what a disk or an object store may answer into one line; nothing to read stays FileNotFoundError."""
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not act.startswith("write"):
                raise
            # Of the object stores' own errors only S3's are known, and boto is not imported to name them.
            foreign = type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore")
            # A ValueError is what boto makes of a setting that it cannot read, such as an endpoint without http://.
            wrong = isinstance(error, ValueError) and not (self.local or isinstance(error, ClipDataError))
            if foreign or wrong or isinstance(error, OSError):
                where = f"{self.url}/{name}".rstrip("/")
                raise ClipDataError(f"cannot {act} {where}: {_reason(error, self.local and act != 'read')}") from error
            raise

    def exists(self, name: str) -> bool:
        if self.local:
            return os.path.exists(self.full(name))
        with self._trying("read", name):
            return self.fs.exists(self.full(name))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._trying("read", name):
            return int(self.fs.size(self.full(name)))

    def list(self, folder: str = "") -> list[str]:
        """Names (sorted, relative to the store) of what stands in a folder; empty when there is no such folder."""
        self.fs.invalidate_cache(self.full(folder))
        try:
            with self._trying("list", folder):
                entries = self.fs.ls(self.full(folder), detail=False)
        except FileNotFoundError:
            return []
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return sorted(f"{folder}/{name}" if folder else name for name in names if not name.startswith(TEMPORARY))

    def open(self, name: str) -> IO[bytes]:
        """A seekable file for reading bytes."""
        try:
            with self._trying("read", name):
                return open(self.full(name), "rb") if self.local else self.fs.open(self.full(name), "rb")
        except FileNotFoundError as error:
            raise ClipDataError(f"{self.url}/{name} does not exist") from error

    def read_bytes(self, name: str) -> bytes:
        with self.open(name) as file, self._trying("read", name):
            return file.read()

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`: one ranged read."""
        if not self.local:
            with self._trying("read", name):
                return self.fs.cat_file(self.full(name), start=offset, end=offset + length)
        with self.open(name) as file, self._trying("read", name):
            file.seek(offset)
            return file.read(length)

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ClipDataError(f"{self.url}/{name} is damaged: not JSON ({error})") from error

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A parquet file, or some of its columns. Raises ClipDataError when damaged or when a column is missing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.open(name) as file, self._trying("read", name):
            try:
                # Arrow's own threads must not hold a Python file: one that drops it last, when the interpreter ends,
                # aborts ("terminate called without an active exception").
                parquet = pq.ParquetFile(file, pre_buffer=False)
                missing = [column for column in columns or () if column not in parquet.schema_arrow.names]
                if missing:
                    known = ", ".join(parquet.schema_arrow.names)
                    raise ClipDataError(f"{self.url}/{name} has no column {missing[0]!r}; it has {known}")
                return parquet.read(columns=list(columns) if columns is not None else None, use_threads=False)
            except (pa.ArrowInvalid, OSError) as error:
                if getattr(error, "errno", None):  # the disk's or the network's, not the file's
                    raise
                raise ClipDataError(f"{self.url}/{name} is damaged: not a parquet file ({error})") from error

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A fresh local folder for files under construction, on the store's own disk when that is local.

        What a killed process of this machine has left there is removed on the way.
        """
        parent, mine = None, f"{TEMPORARY}{socket.gethostname()}-"
        place = self if self.local else Store(tempfile.gettempdir())
        with place._trying("write in", ""):
            if self.local:
                parent = self.path
                os.makedirs(parent, exist_ok=True)
                for left in Path(parent).glob(f"{glob.escape(mine)}*"):
                    if not _runs(left.name.removeprefix(mine).partition("-")[0]):
                        shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{mine}{os.getpid()}-", dir=parent) as folder:
                yield Path(folder)

    def publish(self, file: str | os.PathLike[str], name: str) -> None:
        """Makes a finished local file visible under its final name, at once and whole. Consumes the file."""
        with self._trying("write", name):
            if not self.local:
                self.fs.put_file(os.fspath(file), self.full(name))
                os.unlink(file)
                return
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
            os.makedirs(os.path.dirname(self.full(name)), exist_ok=True)
            os.replace(file, self.full(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        with self._trying("write", name):
            if not self.local:
                self.fs.pipe_file(self.full(name), data)
                return
            target = self.full(name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            temporary = os.path.join(os.path.dirname(target), f"{TEMPORARY}{uuid.uuid4().hex}")
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with suppress(FileNotFoundError), self._trying("remove", name):
            self.fs.rm_file(self.full(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write_bytes(name, table_bytes(table))


def _reason(error: Exception, writing: bool) -> str:
    """What an error of a file system says, and the way out of it."""
    number = error.errno if isinstance(error, OSError) else None
    advice = WAYS_OUT.get(number or type(error).__name__) or ("choose another folder, or make it writable" * writing)
    reason = str((error.strerror if isinstance(error, OSError) else None) or error)
    return "; ".join(filter(None, (" ".join(reason.split()), advice)))


def _runs(pid: str) -> bool:
    """Whether a process of this machine has the id; what is no id counts as one that runs."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True


def table_bytes(table: pa.Table) -> bytes:
    """The table as a parquet file; the same table always gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
