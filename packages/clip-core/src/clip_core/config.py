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
    is_json = file.suffix == ".json"
    try:
        text = file.read_text(encoding="utf-8-sig")
        data = load_json(text) if is_json else tomllib.loads(text)
    except OSError as error:
        advice = "name a .toml file, or the config.json of a run"
        raise ConfigError(f"cannot read the recipe {file}: {error.strerror or error}; {advice}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not valid {'JSON' if is_json else 'TOML'}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold a table, not {_short(data)}")
    if is_json:
        data.pop("fingerprint", None)
    parents = data.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{file}: extends = {parents!r} must be the name of a recipe, or a list of names")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = merge(merged, load_file(file.parent / parent, (*_seen, file.resolve())))
    return merge(merged, data)


def load_json(text: str) -> Any:
    """Parses JSON. Raises ValueError also for an object that has a key twice, of which Python keeps the last."""
    return json.loads(text, object_pairs_hook=unique_keys)


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


def substitute(config: T, **values: str) -> T:
    """Returns a copy of a (nested) config with `{name}` replaced by its value in every string."""
    text = json.dumps(to_dict(config))
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", json.dumps(value)[1:-1])
    return from_dict(type(config), json.loads(text))


def difference(found: Any, wanted: Any, key: str = "") -> str:
    """Describes the first difference of two configs: `optim.lr is 0.1 there and 0.2 now`."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for name in sorted({*found, *wanted} - {"fingerprint"}):
            if found.get(name) != wanted.get(name):
                return difference(found.get(name), wanted.get(name), f"{key}.{name}" if key else name)
    return f"{key or 'it'} is {_short(found)} there and {_short(wanted)} now"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "…"


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "config") -> T:
    """Builds the dataclass `cls`, strictly: every key known, every value of the field's type.

    Raises ConfigError, which names `where` (a file or a command) and the full key.
    """
    try:
        return _build(cls, data, "")
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _build(cls: Any, data: Any, key: str) -> Any:
    prefix = f"{key}." if key else ""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{key or 'the file'} must be a table, not {data!r}")
    if is_variant(cls):
        cls, data = choose(cls, data, prefix), {name: value for name, value in data.items() if name != "kind"}
    hints = {field.name: hint for field, hint in _fields(cls)}
    for name in data:
        if name not in hints:
            hint = did_you_mean(name, hints, f"valid keys: {', '.join(hints)}", cutoff=0.5, spell=prefix.__add__)
            raise ConfigError(f"unknown key {prefix}{name}; {hint}")
    values = {name: convert(hints[name], value, prefix + name) for name, value in data.items()}
    if missing := missing_keys(cls, data, prefix):
        raise ConfigError(f"missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
    return cls(**values)


def _fields(cls: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def is_variant(hint: Any) -> bool:
    """Returns whether a type is the base of several kinds, not one of them."""
    return isinstance(hint, type) and issubclass(hint, Variant) and "KINDS" in vars(hint)


def choose(base: Any, table: Mapping[str, Any], prefix: str = "") -> Any:
    """Returns the config class that the `kind` of a table names. Raises ConfigError if there is none."""
    kind = table.get("kind", base.DEFAULT)
    try:
        found = base.KINDS.get(kind) if isinstance(kind, str) else None
    except ClipError as error:
        raise ConfigError(f"{prefix}kind = {kind!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{prefix}kind = {kind!r} must name a config class that extends {base.__name__}")
    return found


def missing_keys(cls: Any, data: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the required fields that the data lack; for a table that is absent, its own required fields."""
    found = []
    for field, hint in _fields(choose(cls, data, prefix) if is_variant(cls) else cls):
        name, absent = prefix + field.name, field.name not in data
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        value = data.get(field.name, {} if required else None)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            found += missing_keys(hint, value, f"{name}.") or [name] * (absent and required)
        elif required and absent:
            found.append(name)
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
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(each) == len(value):
            return tuple(convert(arg, value[i], f"{key}[{i}]") for i, arg in enumerate(each))
    if origin is dict and isinstance(value, Mapping):
        return {str(name): convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{key} = {value!r} must be {_describe(hint)}")


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false", dict: "a table"}
    if get_origin(hint) is tuple:
        return "a list" if get_args(hint)[-1] is Ellipsis else f"a list of {len(get_args(hint))} values"
    return names.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))
