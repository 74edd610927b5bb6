"""Configuration for every package: TOML recipes with strict keys, dotted flags on top, JSON with a fingerprint out.

Precedence: defaults < recipe (which may `extends` others) < flags.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tomllib
import types
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from clip_core.errors import ClipError
from clip_core.registry import Registry
from clip_core.suggest import did_you_mean

T = TypeVar("T")


class ConfigError(ClipError):
    """A recipe or flag that does not fit the configuration's fields."""


class Variant:
    """Base of the configs of something that comes in several kinds, such as the tasks of clip-train.

    A field of the base's type holds any of `KINDS`. The key `kind` of its table chooses one; the default is `DEFAULT`.
    """

    KINDS: ClassVar[Registry[Any]]
    """config classes by kind: frozen dataclasses that extend the base"""
    DEFAULT: ClassVar[str]

    @property
    def kind(self) -> str:
        """The name in `KINDS`, or `module:Class` for a user-defined kind."""
        return self.KINDS.name_of(type(self))


def load_file(path: str | os.PathLike[str], _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a recipe. `extends = "base.toml"` (or a list, later ones win) is resolved relative to the file."""
    file = Path(path)
    if file.resolve() in _seen:
        raise ConfigError(f"{file}: 'extends' forms a cycle: {' -> '.join(map(str, (*_seen, file)))}")
    syntax, parse = (
        ("JSON", partial(json.loads, object_pairs_hook=unique_keys))
        if file.suffix == ".json"
        else ("TOML", tomllib.loads)
    )
    try:
        data = parse(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        advice = "name a .toml file, or the config.json of a run"
        raise ConfigError(f"cannot read the recipe {file}: {error.strerror or error}; {advice}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not valid {syntax}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold a table, not {data!r:.120}")
    if syntax == "JSON":
        data.pop("fingerprint", None)
    parents = convert(str | tuple[str, ...], data.pop("extends", []), f"{file}: extends")
    merged: dict[str, Any] = {}
    for parent in (parents,) if isinstance(parents, str) else parents:
        merged = merge(merged, load_file(file.parent / parent, (*_seen, file.resolve())))
    return merge(merged, data)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the table of a JSON object, for `object_pairs_hook`. Raises ValueError if a key occurs twice."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key!r} occurs twice in an object")
        table[key] = value
    return table


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges tables key by key, recursively; replaces everything else."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def to_dict(config: Any) -> Any:
    """Returns the JSON form of a (nested) config dataclass."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        table = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": config.kind, **table} if isinstance(config, Variant) else table
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    if isinstance(config, float) and not math.isfinite(config):
        raise ConfigError(f"{config} is not allowed in a configuration: use a finite number")
    return config


def fingerprint(value: Any) -> str:
    """Returns BLAKE2b-128 of the canonical JSON of a config or a JSON value, as hex; 1 and 1.0 are equal."""

    def number(digits: str) -> float:
        return int(whole) if (whole := float(digits)).is_integer() else whole

    plain = json.loads(json.dumps(to_dict(value)), parse_float=number)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def resolved(config: Any) -> dict[str, Any]:
    """Returns the content of an output folder's config.json: every value, and the fingerprint."""
    return {**to_dict(config), "fingerprint": fingerprint(config)}


def difference(found: Any, wanted: Any, key: str = "") -> str:
    """Describes the first difference of two configs: `optim.lr is 0.1 there and 0.2 now`."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for name in sorted({*found, *wanted} - {"fingerprint"}):
            if found.get(name) != wanted.get(name):
                return difference(found.get(name), wanted.get(name), f"{key}.{name}" if key else name)
    return f"{key or 'it'} is {found!r:.120} there and {wanted!r:.120} now"


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "config") -> T:
    """Builds the dataclass `cls`, strictly: every key known, every value of the field's type.

    Raises ConfigError, which names `where` (a file or a command) and the full key.
    """
    try:
        built: T = _build(cls, data, "")
        return built
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _build(cls: Any, data: Any, key: str) -> Any:
    prefix = f"{key}." if key else ""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{key or 'the file'} must be a table, not {data!r}")
    chosen, known = _keys(cls, data, prefix)
    for name in data:
        if name not in known:
            hint = did_you_mean(name, known, f"valid keys: {', '.join(known)}", cutoff=0.5, spell=prefix.__add__)
            raise ConfigError(f"unknown key {prefix}{name}; {hint}")
    values = {name: convert(known[name][0], value, prefix + name) for name, value in data.items()}
    if missing := [name for name, (_, is_missing) in leaves(cls, data, prefix).items() if is_missing]:
        raise ConfigError(f"missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
    for name in [name for name, (_, required) in known.items() if required and name not in values]:
        values[name] = convert(known[name][0], {}, prefix + name)  # a table whose fields have defaults
    if chosen is not cls:
        values.pop("kind", None)
    return chosen(**values)


def _keys(cls: Any, data: Mapping[str, Any], prefix: str) -> tuple[Any, dict[str, tuple[Any, bool]]]:
    """Returns the config class that a table chooses by its `kind`, and key → (type, whether it is required)."""
    keys: dict[str, tuple[Any, bool]] = {}
    if issubclass(cls, Variant) and "KINDS" in vars(cls):  # the base, not one of the kinds
        base, kind, keys["kind"] = cls, data.get("kind", cls.DEFAULT), (str, False)
        try:
            cls = base.KINDS.get(kind) if isinstance(kind, str) else None
        except ClipError as error:
            raise ConfigError(f"{prefix}kind = {kind!r}: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise ConfigError(f"{prefix}kind = {kind!r} must name a config class that extends {base.__name__}")
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        keys[field.name] = hints[field.name], field.default is field.default_factory is dataclasses.MISSING
    return cls, keys


def table_of(hint: Any) -> Any:
    """Returns the dataclass of a field that holds a table or a list of tables, else None."""
    return next((option for option in (hint, *get_args(hint)) if dataclasses.is_dataclass(option)), None)


def leaves(cls: Any, data: Any, prefix: str = "", needed: bool = True) -> dict[str, tuple[Any, bool]]:
    """Returns dotted name → (type, whether it is missing) of all fields that are not tables.

    `data` holds the kinds of tables, and the lists of tables, to each of which one more is added.
    """
    found: dict[str, tuple[Any, bool]] = {}
    data = data if isinstance(data, Mapping) else {}
    for name, (hint, required) in _keys(cls, data, prefix)[1].items():
        table, value, required = table_of(hint), data.get(name), required and needed
        if table and get_origin(hint) is not tuple:
            found |= leaves(table, value, f"{prefix}{name}.", required or (needed and isinstance(value, Mapping)))
            continue
        found[prefix + name] = hint, required and name not in data
        for index, row in enumerate([*value, None] if isinstance(value, list) else [None]) if table else ():
            found |= leaves(table, row, f"{prefix}{name}.{index}.", needed=False)
    return found


def convert(hint: Any, value: Any, key: str) -> Any:
    """Returns a JSON or TOML value as the type of a field. Raises ConfigError when it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, key)
    if origin in (Union, types.UnionType):
        options = [arg for arg in args if arg is not type(None)]
        if value is None and type(None) in args:
            return None
        if len(options) == 1:
            return convert(options[0], value, key)
        for option in options:
            with suppress(ValueError):
                return convert(option, value, key)
        raise ConfigError(f"{key} = {value!r} must be {' or '.join(map(_describe, options))}")
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{key} = {value!r} must be one of {', '.join(map(repr, args))}")
    if origin is tuple and isinstance(value, (list, tuple)):
        each = item_types(hint, len(value))
        if len(each) == len(value):
            return tuple(convert(arg, value[i], f"{key}[{i}]") for i, arg in enumerate(each))
    if origin is dict and isinstance(value, Mapping):
        return {str(name): convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{key} = {value!r} must be {_describe(hint)}")


def item_types(hint: Any, count: int) -> tuple[Any, ...]:
    """Returns the types of the `count` items of a tuple, or of as many as a tuple of fixed length has."""
    args = get_args(hint)
    return args[:1] * count if args[-1] is Ellipsis else args


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false", dict: "a table"}
    if get_origin(hint) is tuple:
        return "a list" if get_args(hint)[-1] is Ellipsis else f"a list of {len(get_args(hint))} values"
    return names.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))
