"""Reads the samples of a source, one at a time, in an order that depends on names and contents only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from braceexpand import braceexpand

from clip_core.store import way_out
from clip_models.errors import ClipModelsError, first_line
from clip_models.inference.embedding.config import EmbedConfig
from clip_models.inference.embedding.samples import IMAGE_SUFFIXES, Sample, Unused

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_SUFFIXES = {
    "tar": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "list": (".txt", ".lst", ".list"),
    "image": IMAGE_SUFFIXES,
}
_OPTIONS = {
    "image_member": ("tars", "folders"), "caption_member": ("tars", "folders"), "caption_field": ("tars", "folders"),
    "key_ends": ("tars",), "image_column": ("tables",), "text_column": ("tables",), "key_column": ("tables",),
}  # fmt: skip
"""Options that only some kinds of sources have."""

Needs = Callable[[int, int], bool]
"""Whether a sample from the first number up to the second, counted over all files, is still to be done."""


def open_source(source: Any, config: EmbedConfig, needs: Needs) -> Iterator[Sample | Unused]:
    """Yields the samples of a path, a URL, a pattern of either, or another iterable; and what is not used."""
    if isinstance(source, str | os.PathLike):
        samples = _open_path(os.fspath(source), config, needs)
        return _reading(os.fspath(source), samples)
    if not isinstance(source, Iterable):
        raise ClipModelsError(f"embed takes a path or an iterable, not {type(source).__name__}")
    _require_fitting_options(config, "iterables", "an iterable")
    return _from_iterable(source, config.what)


def _reading(source: str, samples: Iterator[Sample | Unused]) -> Iterator[Sample | Unused]:
    """Turns errors of a disk or an object store while samples are read into one line."""
    try:
        yield from samples
    except Exception as error:
        if (reason := storage_reason(error)) is None:
            raise
        raise ClipModelsError(f"the source {source} cannot be read: {reason}; run again to continue") from error


def storage_reason(error: Exception) -> str | None:
    """Returns what went wrong with a disk or an object store, in one line; None if `error` is of another kind."""
    library = type(error).__module__.partition(".")[0]
    if library in ("builtins", "clip_core", "clip_models") and not isinstance(error, OSError):
        return None
    said = " ".join(str(error).split()) or type(error).__name__
    return "; ".join(filter(None, (said, way_out(error))))


def _require_fitting_options(config: EmbedConfig, kind: str, source: str) -> None:
    for name, kinds in _OPTIONS.items():
        value = getattr(config, name)
        if value != EmbedConfig.__dataclass_fields__[name].default and kind not in kinds:
            raise ClipModelsError(f"embed: {name} {value!r} is for {' and '.join(kinds)}, not for {source}")


def _open_path(source: str, config: EmbedConfig, needs: Needs) -> Iterator[Sample | Unused]:
    if not source.partition("://")[2 if "://" in source else 0].strip():
        raise ClipModelsError(f"the source {source!r} is empty; name a folder or files")
    beside: list[str] = []
    try:
        found = [
            file for pattern in ([source] if os.path.exists(source) else braceexpand(source)) for file in _find(pattern)
        ]
        if len(found) == 1 and found[0][0].isdir(found[0][1]):
            fs, folder = found[0]
            inside = sorted(fs.ls(folder, detail=False))
            shards = [name for name in inside if _kind(name) in ("tar", "parquet")]
            if not shards:
                _require_fitting_options(config, "folders", "a folder")
                return _from_folder(fs, folder.rstrip("/"), folder.rstrip("/"), config)
            found = [(fs, name) for name in shards]
            beside = [name for name in inside if name not in shards]
    except ClipModelsError:
        raise
    except Exception as error:
        reason = storage_reason(error) or (first_line(error) if isinstance(error, ValueError | ImportError) else None)
        if reason is None:
            raise
        raise ClipModelsError(f"the source {source} cannot be opened: {reason}") from error
    kind = _kind(found[0][1])
    if odd := next((name for _, name in found if not kind or _kind(name) != kind), ""):
        beside_it = f" beside {found[0][1]}" if len({_kind(name) for _, name in found}) > 1 else ""
        raise ClipModelsError(
            f"{odd}{beside_it} does not fit as a source: name a folder of images, or files of one kind (tar, parquet,"
            " txt with one path or caption a line, images), as in 'shards/*.tar'"
        )
    _require_fitting_options(config, {"tar": "tars", "parquet": "tables"}.get(kind, ""), f"a {kind}")
    if kind == "list" and config.what == "both":
        raise ClipModelsError(f"{found[0][1]} has one item a line; for pairs take a folder, tars or a table")
    return _from_files(found, kind, beside, config, needs)


def _find(pattern: str) -> list[tuple[AbstractFileSystem, str]]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(pattern)
    globbed = not fs.exists(path) and any(mark in path for mark in "*?[")
    names = sorted(fs.glob(path)) if globbed else [path] * fs.exists(path)
    if not names:
        missing = "matches no file" if globbed else "does not exist"
        remote = "" if _is_local(fs) else ", or cannot be reached"
        raise ClipModelsError(f"{pattern} {missing}{remote}; check the source")
    return [(fs, name) for name in names]


def _from_files(
    files: list[tuple[AbstractFileSystem, str]], kind: str, beside: list[str], config: EmbedConfig, needs: Needs
) -> Iterator[Sample | Unused]:
    """Yields the samples of files of one kind; `beside` are other files of their folder."""
    from clip_models.inference.embedding.tables import from_tables
    from clip_models.inference.embedding.tars import from_tars

    yield from (Unused(name, "not_opened") for name in beside)
    if kind == "tar":
        yield from from_tars(files, config)
    elif kind == "image":
        yield from (Sample(key=name, image=_content(fs, name)) for fs, name in files)
    elif kind == "list":
        yield from _from_lists(files, config.what)
    else:
        yield from from_tables(files, config, needs)


def _kind(name: str) -> str:
    return next((kind for kind, suffixes in _SUFFIXES.items() if name.lower().endswith(suffixes)), "")


def _content(fs: AbstractFileSystem, path: str) -> str | Callable[[], bytes]:
    return path if _is_local(fs) else partial(fs.cat_file, path)


def _is_local(fs: AbstractFileSystem) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def _from_folder(
    fs: AbstractFileSystem, folder: str, root: str, config: EmbedConfig, above: tuple[str, ...] = ()
) -> Iterator[Sample | Unused]:
    """Yields images or captions of a folder and those below it, sorted by name. A caption has the name of its image.

    A link to a folder that contains it is not followed.
    """
    real = os.path.realpath(folder) if _is_local(fs) else folder
    if real in above:
        return
    entries = {entry["name"].rstrip("/"): entry for entry in fs.ls(folder, detail=True)}
    image_ends, text_ends = ([f".{name}" for name in config.members(kind)] for kind in ("image", "text"))
    images = {_stem(path, image_ends) for path in entries}
    texts = {_stem(path, text_ends): path for path in entries}
    for path, entry in sorted(entries.items()):
        key, image, text = path[len(root) + 1 :], _stem(path, image_ends), _stem(path, text_ends)
        if os.path.basename(path).startswith("."):
            yield Unused(path, "hidden")
        elif entry["type"] == "directory" or (entry.get("islink") and fs.isdir(path)):
            if path != folder:
                yield from _from_folder(fs, path, root, config, (*above, real))
        elif entry["type"] != "file" and fs.exists(path) and not fs.isfile(path):
            yield Unused(path, "not_a_file")
        elif config.what == "text" and text:
            yield Sample(key=key, text=partial(fs.cat_file, path), caption_field=config.field_of(path))
        elif config.what != "text" and image:
            beside = texts.get(image, "") if config.what == "both" else ""
            caption = partial(fs.cat_file, beside) if beside else None
            yield Sample(key=key, image=_content(fs, path), text=caption, caption_field=config.field_of(beside))
        elif config.what == "both" and text:
            if text not in images:
                yield Unused(path, "no_image")
        else:
            yield Unused(path, "not_opened" if _kind(path) in ("tar", "parquet") else "not_asked")


def _stem(path: str, suffixes: Sequence[str]) -> str:
    """Returns the path without the first of `suffixes` that it ends with, in any case; "" without one."""
    found = next((suffix for suffix in suffixes if path.lower().endswith(suffix)), "")
    return path[: -len(found)] if found else ""


def _from_lists(files: list[tuple[AbstractFileSystem, str]], what: str) -> Iterator[Sample | Unused]:
    """Yields a sample for each line. Paths are relative to the list; the key of a caption is its line number."""
    for fs, name in files:
        prefix = f"{os.path.basename(name)}:" if len(files) > 1 else ""
        with fs.open(name, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip(b"\r\n")
                if what == "text":
                    yield Sample(key=f"{prefix}{number}", text=line)
                elif line.strip():
                    path = os.fsdecode(line)
                    yield Sample(key=path, image=resolve_path(fs, name, path))
                else:
                    yield Unused(f"{name}:{number}", "blank_line")


def resolve_path(fs: AbstractFileSystem, holder: str, path: str) -> str | Callable[[], bytes]:
    """Returns the content of a path in a file: a URL, or a path that is absolute or relative to that file."""
    if "://" in path:
        from fsspec.core import url_to_fs

        return _content(*url_to_fs(path))
    if not path.startswith("/"):
        path = f"{os.path.dirname(holder)}/{path}"
    return _content(fs, path)


def _from_iterable(items: Iterable[Any], what: str) -> Iterator[Sample]:
    """Yields values in memory. A mapping may have key, image and text; the key of others is their number."""
    for number, item in enumerate(items):
        if isinstance(item, Mapping):
            key = str(item.get("key", number))
            yield Sample(key=key, image=item.get("image"), text=item.get("text"))
        elif what == "both":
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise ClipModelsError(f"item {number} of the source is no pair (image, caption): {type(item).__name__}")
            yield Sample(key=str(number), image=item[0], text=item[1])
        elif what == "text":
            yield Sample(key=str(number), text=item)
        else:
            yield Sample(key=str(number), image=item)
