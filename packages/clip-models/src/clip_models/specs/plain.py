"""Dataclasses to plain JSON types and back, with errors that name the key."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from clip_core.suggest import did_you_mean
from clip_models.errors import ClipModelsError


def to_plain(value: Any) -> Any:
    """Plain JSON types. A config class that is one of several kinds says which under "kind"."""
    if dataclasses.is_dataclass(value):
        kind = getattr(value, "kind_of_config", None)
        head = {"kind": kind} if kind else {}
        return head | {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """`value`, made of plain types, as `kind`: a dataclass, a union of them, a tuple of fixed length, or a scalar.

    Of a union of dataclasses the entry "kind" chooses the member; without it the first is meant.
    """
    if isinstance(kind, types.UnionType):
        members = typing.get_args(kind)
        if value is None and type(None) in members:
            return None
        members = tuple(member for member in members if member is not type(None))
        return from_plain(_choose(members, value, where) if len(members) > 1 else members[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_plain(kind, value, where)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise ClipModelsError(f"{where} must be a list of {len(parts)}, not {value!r}")
        return tuple(from_plain(part, item, where) for part, item in zip(parts, value, strict=True))
    if typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise ClipModelsError(f"{where} must be a table, not {value!r}")
        return dict(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ClipModelsError(f"{where} must be of type {kind.__name__}, not {value!r}")
    return value


def _choose(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if not all(dataclasses.is_dataclass(member) for member in members):
        fitting = [member for member in members if type(value) is member or (member is float and type(value) is int)]
        fitting += [
            member for member in members if typing.get_origin(member) is tuple and isinstance(value, list | tuple)
        ]
        if not fitting:
            names = " or ".join(getattr(member, "__name__", str(member)) for member in members)
            raise ClipModelsError(f"{where} must be of type {names}, not {value!r}")
        return fitting[0]
    if not isinstance(value, Mapping):
        raise ClipModelsError(f"{where} must be a table, not {value!r}")
    kinds = {member.kind_of_config: member for member in members}
    name = value.get("kind", next(iter(kinds)))
    if name not in kinds:
        raise ClipModelsError(f"{where} is of the unknown kind {name!r}; choose from {', '.join(kinds)}")
    return kinds[name]


def _dataclass_from_plain(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ClipModelsError(f"{where} must be a table, not {value!r}")
    if tag := getattr(kind, "kind_of_config", None):
        value = {key: item for key, item in value.items() if not (key == "kind" and item == tag)}
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in known:
            hint = did_you_mean(key, known, f"it has {', '.join(known)}")
            raise ClipModelsError(f"unknown key {key!r} in {where}; {hint}")
    missing = [name for name, f in known.items() if _is_required(f) and name not in value]
    if missing:
        raise ClipModelsError(f"{where} lacks the key {missing[0]!r}")
    return kind(**{key: from_plain(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def require_positive(config: Any, where: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,)) <= 0:
            raise ClipModelsError(f"{where}.{name} {value} must be positive")


def require_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        known = ", ".join(choice or '""' for choice in choices)
        raise ClipModelsError(f"{where} {value!r} is unknown; choose from {known}")


def require_divides(where: str, whole: int, part: int, whole_name: str, part_name: str) -> None:
    if whole % part:
        raise ClipModelsError(f"{where}.{whole_name} {whole} is not a multiple of {where}.{part_name} {part}")
