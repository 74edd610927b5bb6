"""Samples of tars in webdataset's layout. Every member is used, rejected, or listed as unused."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from clip_models.errors import ClipModelsError
from clip_models.inference.embedding.config import EmbedConfig
from clip_models.inference.embedding.samples import Sample, Unused

if TYPE_CHECKING:
    import tarfile

    from fsspec import AbstractFileSystem

_SHOWN = 6  # names in a message
_BLOCK = 1 << 20


@dataclass
class _Group:
    """Adjacent members of one key."""

    key: str
    names: list[tuple[str, str]] = field(default_factory=list)
    """(extension, name) of each member"""
    readers: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    """by extension"""


def from_tars(files: list[tuple[AbstractFileSystem, str]], config: EmbedConfig) -> Iterator[Sample | Unused]:
    """Yields the samples of each tar in order. Raises ClipModelsError for a damaged tar.

    In an uncompressed tar only headers are read until the callables of a sample are called.
    """
    import tarfile

    for fs, name in files:
        try:
            with fs.open(name, "rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
                seen: set[str] = set()
                for item in _groups(tar, name, config):
                    if isinstance(item, Unused):
                        yield item
                        continue
                    yield from _samples(item, name, config, item.key in seen)
                    seen.add(item.key)
                _require_end(tar)
        except tarfile.ReadError as error:
            begin = fs.cat_file(name, end=32)
            what = f"it begins with {begin!r}" if begin else "it is empty"
            raise _damaged(name, what if "could not be opened" in str(error) else error) from error
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise _damaged(name, error) from error


def _groups(tar: tarfile.TarFile, name: str, config: EmbedConfig) -> Iterator[_Group | Unused]:
    group = _Group("")
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or all headers of the tar stay in memory
        if member.isdir():
            continue
        key, extension, problem = _split(member, config)
        if problem:
            yield Unused(f"{name}/{member.name}", problem)
            continue
        if group.names and group.key != key:
            yield group
            group = _Group(key)
        group.key = key
        group.names.append((extension, member.name))
        reader: Callable[[], bytes] = partial(_read_member, tar, member, name)
        if not name.endswith(".tar") and _may_be_used(extension, group, config):
            reader = partial(bytes, reader())  # a compressed file cannot seek back to it
        group.readers[extension] = reader
    if group.names:
        yield group


def _split(member: tarfile.TarInfo, config: EmbedConfig) -> tuple[str, str, str]:
    """Returns (key, lower-case extension, why the member is in no sample or "")."""
    folder, slash, base = member.name.rpartition("/")
    stem, dot, extension = base.rpartition(".") if config.key_ends == "last-dot" else base.partition(".")
    problem = ""
    if not member.isreg():
        problem = "link" if member.islnk() or member.issym() else "not_a_file"
    elif base.startswith("."):
        problem = "hidden"
    elif not dot:
        problem = "no_extension"
    return f"{folder}{slash}{stem}", extension.lower(), problem


def _samples(group: _Group, tar: str, config: EmbedConfig, again: bool) -> Iterator[Sample | Unused]:
    """Yields the sample of a group, and its members that are not used."""
    chosen: dict[str, str] = {}
    problem = None
    for kind in config.kinds:
        extension, reason = _choose(kind, group, config)
        if extension:
            chosen[kind] = extension
        problem = problem or reason
    if again:
        shown = ", ".join(extension for extension, _ in group.names[:_SHOWN])
        problem = ("not_adjacent", f"{shown} of {tar} are apart from the other members of their key; sort the tar")
    unused = "not_asked"
    if problem is None:
        parts = {kind: group.readers[extension] for kind, extension in chosen.items()}
        field = config.field_of(chosen.get("text", ""))
        yield Sample(key=group.key, image=parts.get("image"), text=parts.get("text"), caption_field=field, in_turn=True)
    else:
        unused = problem[0]
        if chosen or not again:
            yield Sample(key=group.key, problem=problem)
    used = set(chosen.values()) if problem is None else set()
    for extension, name in group.names:
        if extension in used:
            continue
        other = next((f"other_{kind}" for kind in config.kinds if _ends_as(extension, kind, config)), unused)
        yield Unused(f"{tar}/{name}", other if problem is None else unused)


def _choose(kind: str, group: _Group, config: EmbedConfig) -> tuple[str, tuple[str, str] | None]:
    """Returns (extension of the member that is the sample's image or caption, or "", why there is none)."""
    wanted, option = config.members(kind), f"--{'image' if kind == 'image' else 'caption'}-member"
    known = [extension for extension, _ in group.names]
    exact = next((extension for extension in wanted if extension in group.readers), "")
    if exact:
        if (count := known.count(exact)) > 1:
            return "", (f"ambiguous_{kind}", f"{exact} is {count} times in {group.key}; remove all but one")
        return exact, None
    dotted = [] if config.asked_member(kind) else [name for name in known if _ends_as(name, kind, config)]
    if len(dotted) == 1:
        return dotted[0], None
    shown = f"{', '.join((dotted or known)[:_SHOWN])}{', …' if len(dotted or known) > _SHOWN else ''}"
    if dotted:
        return "", (
            f"ambiguous_{kind}",
            f"the key {group.key} has {len(dotted)} members that may be meant ({shown}); name one with {option}, or, if"
            " each is a sample of its own, use --key-ends last-dot",
        )
    noun = "image" if kind == "image" else "caption"
    which = f"{option} {asked!r} is not" if (asked := config.asked_member(kind)) else f"there is no {noun}"
    advice = f"name one with {option}, or sort the tar if its {noun} is elsewhere"
    return "", (f"no_{noun}", f"{which} among the adjacent members of {group.key} ({shown}); {advice}")


def _ends_as(extension: str, kind: str, config: EmbedConfig) -> bool:
    return extension in config.members(kind) or extension.rpartition(".")[2] in config.members(kind)


def _may_be_used(extension: str, group: _Group, config: EmbedConfig) -> bool:
    """Whether a member may be the one that is used: of those with more dots only the first can."""
    for kind in config.kinds:
        if extension in config.members(kind):
            return True
        if _ends_as(extension, kind, config) and not config.asked_member(kind):
            return sum(_ends_as(name, kind, config) for name, _ in group.names) == 1
    return False


def _require_end(tar: tarfile.TarFile) -> None:
    """Raises EOFError if the tar was cut within a header or between two members, or if another one is appended to it.

    Both look finished to tarfile: the first lacks the block of zeros, the second has more than zeros after its end.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(512)
    if block != bytes(512):
        raise EOFError("it lacks its end")
    while block := tar.fileobj.read(_BLOCK):
        if block.strip(b"\0"):
            raise EOFError("there is more behind its end, as in a tar made of several; pack them into one")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    from tarfile import TarError

    try:
        file = tar.extractfile(member)
        return file.read() if file else b""
    except (TarError, EOFError, OSError, zlib.error) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception | str) -> ClipModelsError:
    return ClipModelsError(f"{name} is damaged or no tar: {error}; fetch it again, or leave it out")
