"""A folder on any fsspec file system, in which a file gets its final name only when it is complete."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import socket
import tempfile
import tomllib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from clip_core.config import ConfigError, difference, resolved, to_dict
from clip_core.errors import ClipError
from clip_core.files import sync

# Read at import: when the limit of open files is exceeded, it is too late.
ADVICE: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("advice.toml").read_text("utf-8"))
TEMPORARY = ".tmp-"  # prefix of files under construction, which are never listed


class Store:
    """A folder addressed by an fsspec URL (`/data/run`, `s3://bucket/run`, `memory://x`); names are relative to it.

    Writes are atomic. Errors of the disk or the object store become a ClipError of one line.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        import fsspec

        if not os.fspath(url):
            raise ClipError("the name of a folder is empty: give a path or an fsspec URL")
        self.url = os.fspath(url).rstrip("/") or "/"
        protocol, colon, rest = self.url.partition(":")
        if colon and not rest.startswith(("//", ":")) and protocol in fsspec.available_protocols():
            raise ClipError(f"{os.fspath(url)!r} names no folder: write {protocol}://bucket/folder")
        try:
            self.fs, path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ClipError(f"cannot open the folder {self.url!r}: {error}") from error
        self.path = str(path).rstrip("/")
        self.local = "file" in ((self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol)

    def full(self, name: str) -> str:
        """Returns the file system's own path of `name`."""
        return f"{self.path}/{name}" if name else self.path

    @contextmanager
    def trying(self, act: str, name: str) -> Iterator[None]:
        """Turns errors of the disk or the object store in the block into a ClipError: `cannot {act} {name}: …`."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) and act == "read":
                raise ClipError(f"{where} does not exist") from error
            # boto raises a ValueError for a value that it cannot read, such as an endpoint without http://.
            wrong = isinstance(error, ValueError) and not (self.local or isinstance(error, ClipError))
            if not (_is_s3_error(error) or wrong or isinstance(error, OSError)):
                raise
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            advice = way_out(error) or "choose another folder, or make it writable" * (self.local and act != "read")
            raise ClipError(f"cannot {act} {where}: {'; '.join(filter(None, (reason, advice)))}") from error

    def exists(self, name: str) -> bool:
        """Returns whether there is a file or a folder of this name."""
        if self.local:  # fsspec counts a link to a missing file as one that exists
            return os.path.exists(self.full(name))
        with self.trying("read", name):
            return bool(self.fs.exists(self.full(name)))

    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""
        with self.trying("read", name):
            return int(self.fs.size(self.full(name)))

    def list(self, folder: str = "") -> list[str]:
        """Returns the names (sorted, relative to the store) in a folder; none when there is no such folder."""
        self.fs.invalidate_cache(self.full(folder))
        entries: list[str] = []
        with self.trying("list", folder), suppress(FileNotFoundError):
            entries = self.fs.ls(self.full(folder), detail=False)
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return sorted(f"{folder}/{name}" if folder else name for name in names if not name.startswith(TEMPORARY))

    def open(self, name: str) -> IO[bytes]:
        """Opens a file for reading bytes; it is seekable."""
        with self.trying("read", name):
            return open(self.full(name), "rb") if self.local else self.fs.open(self.full(name), "rb")

    def read_bytes(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Returns a file's bytes, or by one ranged read those from `start` to before `end`."""
        with self.trying("read", name):
            data: bytes = self.fs.cat_file(self.full(name), start=start, end=end)
            return data

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ClipError(f"{self.url}/{name} is damaged: not JSON ({error})") from error

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Makes a local folder for files under construction, on the store's own disk when that is local.

        Folders that killed processes of this machine have left there are removed.
        """
        mine, place = f"{TEMPORARY}{socket.gethostname()}-", self if self.local else Store(tempfile.gettempdir())
        with place.trying("write in", ""):
            os.makedirs(place.path, exist_ok=True)
            for left in Path(place.path).glob(f"{glob.escape(mine)}*") if self.local else ():
                if _ended(left.name.removeprefix(mine).partition("-")[0]):
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{mine}{os.getpid()}-", dir=place.path) as folder:
                yield Path(folder)

    def publish(self, file: str | os.PathLike[str], name: str) -> None:
        """Moves a finished local file to its final name."""
        with self.trying("write", name):
            if self.local:
                sync(file)
                os.makedirs(os.path.dirname(self.full(name)), exist_ok=True)
                os.replace(file, self.full(name))
            else:
                self.fs.put_file(os.fspath(file), self.full(name))
                os.unlink(file)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a local file for writing, which gets its final name when the block ends without an error."""
        folder = os.path.dirname(self.full(name)) if self.local else tempfile.gettempdir()
        temporary = Path(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
        with self.trying("write", name):
            os.makedirs(folder, exist_ok=True)
            file = open(temporary, "xb")  # noqa: SIM115 -- closed below; errors of the block are not this file's
        try:
            with file:
                yield file
            self.publish(temporary, name)
        finally:
            temporary.unlink(missing_ok=True)

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.trying("write", name):
            if self.local:
                with self.writing(name) as file:
                    file.write(data)
            else:  # needs no local disk
                self.fs.pipe_file(self.full(name), data)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        with self.trying("remove", name), suppress(FileNotFoundError):
            self.fs.rm_file(self.full(name))


def claim(store: Store, config: Any, *, free: Sequence[str] = ()) -> None:
    """Makes an output folder belong to one config: writes `config.json`, or checks it as `is_claimed` does."""
    is_claimed(store, config, free=free)
    store.write_json("config.json", resolved(config))


def is_claimed(
    store: Store,
    config: Any,
    name: str = "config.json",
    *,
    what: str = "run",
    free: Sequence[str] = (),
    own: Sequence[str] = (),
) -> bool:
    """Returns whether a folder belongs to a config, which its file `name` holds; False when the folder is new.

    `free` names top-level keys that may differ, `own` the entries that a new folder may have. Raises ConfigError when
    the folder belongs to another `what`, or holds files of something else.
    """
    advice = "choose another output folder"
    if not store.exists(name):
        if other := [entry for entry in store.list() if entry not in own]:
            found = f"it has {other[0]!r}, no {name}"
            raise ConfigError(f"{store.url} is not empty and holds no {what} ({found}): {advice}")
        return False
    found = store.read_json(name)
    if not isinstance(found, dict):
        raise ConfigError(f"{store.url}/{name} is damaged: it holds no table; {advice}")
    kept, asked = ({k: v for k, v in c.items() if k not in (*free, "fingerprint")} for c in (found, to_dict(config)))
    if kept != asked:
        found = difference(kept, asked)
        raise ConfigError(f"{store.url} holds another {what}: {found}; {advice}, or remove this one")
    return True


def _is_s3_error(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore")  # not imported for this


def way_out(error: Exception) -> str:
    """Returns what helps against an error of a disk or an object store; "" when nothing is known."""
    kind = type(error).__name__
    if _is_s3_error(error):
        return next(advice for part, advice in ADVICE["s3"].items() if part in kind)
    return ADVICE["local"].get(errno.errorcode.get(getattr(error, "errno", None) or 0, kind), "")


def _ended(pid: str) -> bool:
    """Returns whether `pid` is the id of no process of this machine; False where it is not an id at all."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OSError) as error:
        return isinstance(error, ProcessLookupError)
    return False
