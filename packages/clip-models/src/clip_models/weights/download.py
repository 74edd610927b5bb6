"""Files from afar: whole and verified under their final name, or not there at all.

What has arrived of a file lies beside its final place as NAME.incomplete, also after the process was killed, and the
next attempt goes on from there. Only a file whose size and hash are right is renamed.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from clip_core.console import progress_bar
from clip_core.files import sha256_of
from clip_models.errors import ClipModelsError
from clip_models.weights.content import inspect

TIMEOUT_S = 10.0
"""Longest silence of a server, while it is reached and while it sends."""
ATTEMPTS = 2
"""Connections in a row that may bring nothing before a download is given up."""
_CHUNK = 1 << 20
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


def download_pretrained_from_url(url: str, cache_dir: str | os.PathLike[str] | None = None, sha256: str = "") -> Path:
    """The local copy of the file at any fsspec URL (https://, s3://, memory://); ClipModelsError if it cannot be had.

    `sha256`, whole or its start, is checked, and a copy that was checked is used again without the network. Without
    it a copy is used again while the server tells the same ETag or date of change. Copies lie in `cache_dir`, or in
    ~/.cache/clip-models.
    """
    name = unquote(os.path.basename(urlsplit(url).path))
    if not name or "://" not in url:
        raise ClipModelsError(f"{url!r} is not the URL of a file")
    state = "" if sha256 else _state(url)
    key = hashlib.sha256(f"{url}\n{state}".encode()).hexdigest()[:16]
    path = cache_root(cache_dir) / key / name
    if not (sha256 or state):
        path.unlink(missing_ok=True)
        partial_of(path).unlink(missing_ok=True)
    fetch(url, path, digest=sha256)
    if foreign := inspect(path).foreign:
        path.unlink(missing_ok=True)
        raise ClipModelsError(f"{url} sends no weights; what it sends is {foreign}")
    return path


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where copies of URLs lie."""
    if cache_dir is not None:
        return Path(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-models"


def fetch(
    url: str, path: Path, *, digest: str = "", size: int | None = None, headers: Mapping[str, str] | None = None
) -> Path:
    """`path`, once the file at `url` lies there with this digest and size.

    `digest` in hex: 64 digits are the SHA-256, 40 git's object id, fewer the start of the SHA-256. `headers` go to
    the host of `url` only, not to where it redirects. An existing file is taken as it is.
    """
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClipModelsError(f"cannot write {path}: {error.strerror}; choose another cache_dir") from error
    with _lock(path):
        if path.is_file():  # another process was faster
            return path
        partial = partial_of(path)
        _complete(_Download(url, partial, size, dict(headers or {})))
        if not _matches(partial, digest):
            partial.unlink()
            raise ClipModelsError(
                f"what {url} sent does not have the hash {digest}; it was thrown away: fetch it again, and if that does"
                " not help the file there is another one"
            )
        os.replace(partial, path)
    return path


def partial_of(path: Path) -> Path:
    """Where the bytes that have arrived lie."""
    return path.with_name(path.name + ".incomplete")


@dataclass
class _Download:
    url: str
    partial: Path
    size: int | None
    """Known beforehand, or what the server says of the whole file."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def arrived(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0


def _complete(download: _Download) -> None:
    """Fill the partial file, over as many connections as it takes while each brings something."""
    if download.size is not None and download.arrived > download.size:
        download.partial.unlink()
    idle = 0
    while download.size is None or download.arrived < download.size:
        before = download.arrived
        try:
            if _receive(download):
                break
            error: Exception = ClipModelsError(
                f"{download.url} broke off after {download.arrived} of {download.size} bytes"
            )
        except urllib.error.HTTPError as refusal:
            raise explain(download.url, refusal) from refusal
        except ClipModelsError:
            raise
        except Exception as failure:  # whatever the store's own library raises
            error = failure
        idle = 0 if download.arrived > before else idle + 1
        if idle == ATTEMPTS:
            raise explain(download.url, error) from error
    if download.size is not None and download.arrived > download.size:
        download.partial.unlink()
        raise ClipModelsError(f"{download.url} sends more than the {download.size} bytes it should have")
    download.partial.touch()  # an empty file


def _receive(download: _Download) -> bool:
    """Append one connection's bytes; whether the server came to the end of the file."""
    with _open_at(download.url, download.arrived, download.headers) as (source, start, total):
        if download.size is None:
            download.size = total
        with (
            _writing(download.partial, "r+b" if start else "wb") as file,
            progress_bar(
                total=download.size, initial=start, desc=download.partial.stem, unit="B", unit_scale=True
            ) as bar,
        ):
            file.seek(start)
            while chunk := source.read(_CHUNK):
                _write(file, chunk, download.partial)
                bar.update(len(chunk))
                if download.size is not None and file.tell() > download.size:
                    break
            file.flush()
            os.fsync(file.fileno())
    return download.size is None or download.arrived >= download.size


@contextmanager
def _open_at(url: str, offset: int, headers: Mapping[str, str]) -> Iterator[tuple[Any, int, int | None]]:
    """(readable, the offset at which it begins, size of the whole file where known)."""
    if not url.startswith(("http://", "https://")):
        fs, path = _file_system(url)
        with fs.open(path, "rb") as file:
            total = fs.size(path)
            start = offset if total is None or offset <= total else 0
            file.seek(start)
            yield file, start, total
        return
    request = urllib.request.Request(url, headers={"User-Agent": "clip-models"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        # Nothing follows: what is here is the whole file, or longer than the one that is there now.
        response = urllib.request.urlopen(_without_range(request), timeout=TIMEOUT_S)
    with response:
        whole = response.status != 206
        length = response.headers.get("Content-Length")
        start = 0 if whole else offset
        yield response, start, start + int(length) if length is not None else None


def _without_range(request: urllib.request.Request) -> urllib.request.Request:
    request.remove_header("Range")
    return request


def _state(url: str) -> str:
    """What tells one version of a file from the next; "" where the server tells nothing."""
    if not url.startswith(("http://", "https://")):
        fs, path = _file_system(url)
        try:
            return str(fs.ukey(path))
        except FileNotFoundError as error:
            raise ClipModelsError(f"there is no file {url}") from error
        except Exception as error:  # whatever the store's own library raises
            raise explain(url, error) from error
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "clip-models"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            marks = [response.headers.get(name, "") for name in ("ETag", "Last-Modified")]
            return f"{marks} {response.headers.get('Content-Length')}" if any(marks) else ""
    except _NETWORK_ERRORS as error:
        raise explain(url, error) from error


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ClipModelsError(f"{url} cannot be read: {error}") from error
    except Exception as error:  # some connect here
        raise explain(url, error) from error
    return fs, path


def explain(url: str, error: Exception) -> ClipModelsError:
    """The one sentence for what went wrong on the way to `url`."""
    if isinstance(error, ClipModelsError):
        return error
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            return ClipModelsError(f"{url} is refused (HTTP {error.code}); it needs a login that allows it")
        if error.code in (404, 410):
            return ClipModelsError(f"there is nothing at {url} (HTTP {error.code})")
        return ClipModelsError(f"{url} is not served now (HTTP {error.code}); try again later")
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
    text = " ".join(text.split())
    return ClipModelsError(f"{url} does not answer ({text}); try again, what has arrived is kept, or name a local file")


def _matches(path: Path, digest: str) -> bool:
    if len(digest) == 40:
        content = path.read_bytes()  # git keeps small files only; large ones carry their SHA-256
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest
    return sha256_of(path).startswith(digest) if digest else True


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time per file; the lock of a process that dies is free again."""
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(path.with_name(f".{path.name}.lock")):
        yield


@contextmanager
def _writing(path: Path, mode: str) -> Iterator[IO[bytes]]:
    try:
        file = open(path, mode)  # noqa: SIM115 -- closed below; only the opening is explained here
    except OSError as error:
        raise ClipModelsError(f"cannot write {path}: {error.strerror}; choose another cache_dir") from error
    with file:
        yield file


def _write(file: IO[bytes], chunk: bytes, path: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise ClipModelsError(f"cannot write {path}: {error.strerror}; choose another cache_dir") from error
