"""Downloads of files that get their final name only when they are complete and verified.

The bytes that have arrived are in NAME.incomplete beside the final place, also after the process was killed, and the
next attempt continues there.
"""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from clip_core.console import progress_bar
from clip_core.files import sha256_of
from clip_models.errors import ClipModelsError
from clip_models.weights.content import inspect

TIMEOUT_S = 10.0
"""Longest silence of a server, while connecting and while it sends."""
ATTEMPTS = 2
"""A download fails after this many connections in a row without new bytes."""
_CHUNK = 1 << 20
_AGENT = {"User-Agent": "clip-models"}


def download_pretrained_from_url(url: str, cache_dir: str | os.PathLike[str] | None = None, sha256: str = "") -> Path:
    """Returns the local copy of a file at any fsspec URL (https://, s3://, memory://). Raises ClipModelsError.

    `sha256`, whole or its start, is checked, and a checked copy is reused without the network. Without it a copy is
    reused while the server reports the same ETag or modification date. Copies are in `cache_dir`, by default in
    ~/.cache/clip-models.
    """
    name = unquote(os.path.basename(urlsplit(url).path))
    if not name or "://" not in url:
        raise ClipModelsError(f"{url!r} is not the URL of a file")
    state = "" if sha256 else _state(url)
    key = hashlib.sha256(f"{url}\n{state}".encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-models"
    path = (root if cache_dir is None else Path(cache_dir)) / key / name
    if not (sha256 or state):
        path.unlink(missing_ok=True)
        partial_of(path).unlink(missing_ok=True)
    fetch(url, path, digest=sha256)
    if foreign := inspect(path).foreign:
        path.unlink(missing_ok=True)
        raise ClipModelsError(f"{url} sends no weights: its content is {foreign}")
    return path


def fetch(
    url: str, path: Path, *, digest: str = "", size: int | None = None, headers: Mapping[str, str] | None = None
) -> Path:
    """Downloads `url` to `path` and returns it; an existing file is taken as it is. Raises ClipModelsError.

    `digest` in hex: 64 digits are the SHA-256, 40 git's object id, fewer the start of the SHA-256. `headers` go to
    the host of `url` only, not to where it redirects.
    """
    from huggingface_hub.utils import WeakFileLock

    if path.is_file():
        return path
    partial = partial_of(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{path.name}.lock")):  # the lock of a killed process is free again
        if path.is_file():  # another process was faster
            return path
        _complete(_Download(url, partial, size, dict(headers or {})))
        if not _matches(partial, digest):
            partial.unlink()
            raise ClipModelsError(
                f"what {url} sent does not have the hash {digest} and was deleted: fetch it again; if that does not"
                " help, the file has changed"
            )
        os.replace(partial, path)
    return path


def partial_of(path: Path) -> Path:
    """Returns the file of the bytes that have arrived."""
    return path.with_name(path.name + ".incomplete")


@dataclass
class _Download:
    url: str
    partial: Path
    size: int | None
    """Of the whole file, given or reported by the server."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def arrived(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0


def _complete(download: _Download) -> None:
    """Fills the partial file, over as many connections as needed while each brings something."""
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
        except (urllib.error.HTTPError, ClipModelsError) as refusal:
            raise explain(download.url, refusal) from refusal
        except Exception as failure:  # any exception of the store's own library
            error = failure
        idle = 0 if download.arrived > before else idle + 1
        if idle == ATTEMPTS:
            raise explain(download.url, error) from error
    if download.size is not None and download.arrived > download.size:
        download.partial.unlink()
        raise ClipModelsError(f"{download.url} sends more than the {download.size} bytes it should have")
    download.partial.touch()  # an empty file


def _receive(download: _Download) -> bool:
    """Appends the bytes of one connection; returns whether the file is complete."""
    name = download.partial.stem
    with _open_at(download.url, download.arrived, download.headers) as (source, start, total):
        if download.size is None:
            download.size = total
        with _writing(download.partial):
            file = open(download.partial, "r+b" if start else "wb")  # noqa: SIM115 -- closed below
        with file, progress_bar(total=download.size, initial=start, desc=name, unit="B", unit_scale=True) as bar:
            file.seek(start)
            while chunk := source.read(_CHUNK):
                with _writing(download.partial):
                    file.write(chunk)
                bar.update(len(chunk))
                if download.size is not None and file.tell() > download.size:
                    break
            file.flush()
            os.fsync(file.fileno())
    return download.size is None or download.arrived >= download.size


@contextmanager
def _open_at(url: str, offset: int, headers: Mapping[str, str]) -> Iterator[tuple[Any, int, int | None]]:
    """Yields (readable, the offset at which it begins, size of the whole file or None)."""
    if not url.startswith(("http://", "https://")):
        fs, path = _file_system(url)
        with fs.open(path, "rb") as file:
            total = fs.size(path)
            start = offset if total is None or offset <= total else 0
            file.seek(start)
            yield file, start, total
        return
    request = urllib.request.Request(url, headers=_AGENT)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        # Nothing follows: the local file is complete, or longer than the present one.
        request.remove_header("Range")
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    with response:
        start = offset if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        yield response, start, start + int(length) if length is not None else None


def _state(url: str) -> str:
    """Returns what distinguishes versions of a file; "" if the server reports nothing."""
    try:
        if not url.startswith(("http://", "https://")):
            fs, path = _file_system(url)
            return str(fs.ukey(path))
        request = urllib.request.Request(url, headers=_AGENT)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            marks = [response.headers.get(name, "") for name in ("ETag", "Last-Modified")]
            return f"{marks} {response.headers.get('Content-Length')}" if any(marks) else ""
    except FileNotFoundError as error:
        raise ClipModelsError(f"there is no file {url}") from error
    except Exception as error:  # any exception of the store's own library
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
    """Returns the error for a failed download of `url`, in one line."""
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
        content = path.read_bytes()  # git keeps small files only; large ones have their SHA-256
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest
    return sha256_of(path).startswith(digest) if digest else True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClipModelsError(f"cannot write {path}: {error.strerror}; choose another cache_dir") from error
