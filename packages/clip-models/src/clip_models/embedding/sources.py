"""Where samples come from: one at a time, in an order that depends on names and contents only."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from clip_models.embedding.config import EmbedConfig
from clip_models.errors import ClipModelsError

if TYPE_CHECKING:
    import tarfile

    from fsspec import AbstractFileSystem

PICTURES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm",
    ".ico", ".tga", ".qoi",
)  # fmt: skip
_SUFFIXES = {"tar": (".tar", ".tar.gz", ".tgz"), "parquet": (".parquet",), "list": (".txt", ".lst", ".list")}
_BRACES = re.compile(r"\{([^{}]*)\}")

Needs = Callable[[int, int], bool]
"""Whether any of the samples from the first number up to the second, counted over all files, is still to be done."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture, a caption, or both; what is absent is None. A callable gives its value when it is called."""

    key: str
    image: Any = None
    """a path, the bytes of a file, a Pillow picture, or a callable that gives bytes"""
    text: Any = None
    """a caption, or a callable that gives its bytes"""
    in_turn: bool = False
    """the callables hold only until the next sample is asked for"""


def open_source(source: Any, config: EmbedConfig, needs: Needs) -> Iterator[Sample]:
    """The samples of a path, a URL, a pattern of either, or of any other iterable."""
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), config, needs)
    if not isinstance(source, Iterable):
        raise ClipModelsError(f"embed takes a path or an iterable, not {type(source).__name__}")
    return _from_iterable(source, config.what)


def _open_path(source: str, config: EmbedConfig, needs: Needs) -> Iterator[Sample]:
    from fsspec.core import url_to_fs

    found: list[tuple[AbstractFileSystem, str]] = []
    try:
        for pattern in _expand_braces(source):
            fs, path = url_to_fs(pattern)
            globbed = not fs.exists(path) and any(mark in path for mark in "*?[")
            names = sorted(fs.glob(path)) if globbed else [path] * fs.exists(path)
            if not names:
                raise ClipModelsError(
                    f"{pattern} {'matches no file' if globbed else 'does not exist'}; check the source"
                )
            found += [(fs, name) for name in names]
        if len(found) == 1 and found[0][0].isdir(found[0][1]):
            fs, folder = found[0]
            inside = [(fs, name) for name in sorted(fs.ls(folder, detail=False))]
            shards = [pair for pair in inside if _kind(pair[1]) in ("tar", "parquet")]
            if not shards:
                return _from_folder(fs, folder, config.what)
            found = shards
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, ClipModelsError):
            raise
        raise ClipModelsError(f"the source {source} cannot be opened: {error}") from error
    kinds = {_kind(name) for _, name in found}
    if len(kinds) > 1 or kinds == {""}:
        odd = next(name for _, name in found if _kind(name) != _kind(found[0][1]) or not _kind(name))
        raise ClipModelsError(
            f"{odd} does not fit as a source: name a folder, or files of one kind (tar, parquet, txt with one path or"
            " caption a line, pictures)"
        )
    kind = kinds.pop()
    if kind == "picture":
        return (Sample(key=name, image=_payload(fs, name)) for fs, name in found)
    if kind == "list":
        return _from_lists(found, config.what)
    if kind == "tar":
        return _from_tars(found, config.what)
    from clip_models.embedding.tables import from_tables

    return from_tables(found, config, needs)


def _kind(name: str) -> str:
    lower = name.lower()
    for kind, suffixes in _SUFFIXES.items():
        if lower.endswith(suffixes):
            return kind
    return "picture" if os.path.splitext(lower)[1] in PICTURES else ""


def _expand_braces(pattern: str) -> list[str]:
    """`{a,b}` and `{000..010}`, as a shell does it."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    inner = match[1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    tails = _expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + choice + tail for choice in choices for tail in tails]


def _payload(fs: AbstractFileSystem, path: str) -> str | Callable[[], bytes]:
    return path if _is_local(fs) else partial(fs.cat_file, path)


def _is_local(fs: AbstractFileSystem) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def _from_folder(fs: AbstractFileSystem, root: str, what: str) -> Iterator[Sample]:
    """Pictures, or texts, of a folder and those below it; the text of a picture is the .txt file of its name."""
    root = root.rstrip("/")
    for path in _walk(fs, root, ()):
        stem, suffix = os.path.splitext(path)
        key = path[len(root) + 1 :]
        if what == "text":
            if suffix.lower() == ".txt":
                yield Sample(key=key, text=partial(fs.cat_file, path))
        elif suffix.lower() in PICTURES:
            text = partial(fs.cat_file, f"{stem}.txt") if what == "both" else None
            yield Sample(key=key, image=_payload(fs, path), text=text)


def _walk(fs: AbstractFileSystem, folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Files below a folder, sorted by name; a link to a folder that holds it is not followed."""
    real = os.path.realpath(folder) if _is_local(fs) else folder
    if real in above:
        return
    for entry in sorted(fs.ls(folder, detail=True), key=lambda entry: entry["name"]):
        name = entry["name"].rstrip("/")
        if entry["type"] == "directory" or (entry.get("islink") and fs.isdir(name)):
            if name != folder:
                yield from _walk(fs, name, (*above, real))
        else:
            yield name


def _from_lists(files: list[tuple[AbstractFileSystem, str]], what: str) -> Iterator[Sample]:
    """One path or caption a line. Paths are relative to the list; captions have the number of their line as key."""
    if what == "both":
        raise ClipModelsError(f"{files[0][1]} has one thing a line; for pairs take a folder, tars or a table")
    for fs, name in files:
        prefix = f"{os.path.basename(name)}:" if len(files) > 1 else ""
        with fs.open(name, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.rstrip(b"\r\n")
                if what == "text":
                    yield Sample(key=f"{prefix}{number}", text=line.decode("utf-8", "replace"))
                elif line.strip():
                    path = os.fsdecode(line)
                    yield Sample(key=path, image=resolve_path(fs, name, path))


def resolve_path(fs: AbstractFileSystem, holder: str, path: str) -> str | Callable[[], bytes]:
    """The payload of a path that a file names: absolute, a URL, or relative to that file."""
    if "://" in path:
        from fsspec.core import url_to_fs

        return _payload(*url_to_fs(path))
    if not path.startswith("/"):
        path = f"{os.path.dirname(holder)}/{path}"
    return _payload(fs, path)


def _from_tars(files: list[tuple[AbstractFileSystem, str]], what: str) -> Iterator[Sample]:
    """webdataset's layout: consecutive members with one name up to the first dot of their base name are a sample.

    Of a tar that is not compressed only headers are read until the callables of a sample are called.
    """
    import tarfile

    for fs, name in files:
        try:
            with fs.open(name, "rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
                key, parts = "", dict[str, Callable[[], bytes]]()
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or all headers of the tar stay in memory
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    if not member.isreg() or not stem:
                        continue
                    if key and key != f"{folder}{slash}{stem}":
                        yield Sample(key=key, **parts, in_turn=True)
                        parts = {}
                    key = f"{folder}{slash}{stem}"
                    kind = _part_of_sample(extension.lower(), what)
                    if kind and kind not in parts:
                        parts[kind] = partial(_read_member, tar, member, name)
                        if not name.endswith(".tar"):  # a compressed file cannot go back to it
                            parts[kind] = partial(bytes, parts[kind]())
                if key:
                    yield Sample(key=key, **parts, in_turn=True)
                _require_end(tar)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise _damaged(name, error) from error


def _require_end(tar: tarfile.TarFile) -> None:
    """A tar that was cut within a header, or between two members, looks finished; but it lacks the block of zeros."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(512) != bytes(512):
        raise EOFError("it lacks its end")


def _part_of_sample(extension: str, what: str) -> str:
    """image, text or "", for what a member of a tar holds."""
    if what != "text" and f".{extension.rpartition('.')[2]}" in PICTURES:
        return "image"
    return "text" if what != "image" and extension == "txt" else ""


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    import tarfile

    try:
        file = tar.extractfile(member)
        return file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> ClipModelsError:
    return ClipModelsError(f"{name} is damaged or no tar: {error}; fetch it again, or leave it out")


def _from_iterable(items: Iterable[Any], what: str) -> Iterator[Sample]:
    """Values in memory; a mapping may say more: key, image, text. Other keys are running numbers."""
    for number, item in enumerate(items):
        if isinstance(item, Mapping):
            key = str(item.get("key", number))
            yield Sample(key=key, image=item.get("image"), text=item.get("text"))
        elif what == "both":
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise ClipModelsError(
                    f"item {number} of the source is no pair (picture, caption): {type(item).__name__}"
                )
            yield Sample(key=str(number), image=item[0], text=item[1])
        elif what == "text":
            yield Sample(key=str(number), text=item)
        else:
            yield Sample(key=str(number), image=item)
