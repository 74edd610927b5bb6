"""Dotted flags: each one is a line of a recipe. `--optim.lr 1e-3` is `lr = 1e-3` in the table `[optim]`."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from clip_core.config import ConfigError, choose, convert, is_variant
from clip_core.suggest import nearest


def positional(cls: type) -> str:
    """Returns the field that takes the words without a flag, `field(metadata={"positional": True})`; "" without one."""
    return next((f.name for f in dataclasses.fields(cls) if f.metadata.get("positional")), "")


def put_flags(cls: type, data: dict[str, Any], words: Sequence[str]) -> None:
    """Sets the values of the flags among `words` in `data`, a recipe's content for `cls`. Raises ConfigError."""
    place = positional(cls)
    first, *flags = _flags(words)
    flags.sort(key=lambda flag: not flag[0].endswith("kind"))  # the kind of a table decides which flags it has
    free, given = first[1], dict[str, str]()
    if free and not place:
        raise ConfigError(f"{free[0]!r} is not a flag: flags begin with two dashes and a letter")
    for flag, values in flags:
        name = flag.removeprefix("--").replace("-", "_")
        if name in given:
            raise ConfigError(f"{flag} is given twice: give it once")
        for other, as_written in given.items():  # --tasks and --tasks.0.root
            if f"{other}.".startswith(f"{name}.") or f"{name}.".startswith(f"{other}."):
                raise ConfigError(f"{as_written} and {flag} set the same value: give one of them")
        given[name] = flag
        hint = _leaves(cls, data).get(name, tuple[str, ...])
        if place and get_origin(hint) is not tuple:  # words beyond the one value are positional
            taken = 1 if hint is not bool or [word.lower() for word in values[:1]] in (["true"], ["false"]) else 0
            free += values[taken:]
            values = values[:taken]
        _put(cls, data, name, flag, values)
    if free:
        _put(cls, data, place, place.upper(), free)


def _flags(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Returns each flag as written with the words up to the next; the first item, "", has the words before any flag."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if re.match("--[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        else:
            found[-1][1].append(word)
    return found


def _put(cls: type, data: dict[str, Any], name: str, flag: str, words: Sequence[str]) -> None:
    """Sets the field with the dotted `name`; `tasks.0.root` is the field root of the first of the tables `tasks`."""
    leaves = _leaves(cls, data)
    item = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
    leaf = item[1] if item else name
    if leaf not in leaves or (item and _item(leaves[leaf]) is None):
        raise ConfigError(f"unknown flag {flag}; {_advice(leaf, leaves, flag[: -len(name)])}")
    *tables, key = leaf.split(".")
    for table in tables:
        if data.get(table) is None:
            data[table] = {}
        data = data[table]
        if not isinstance(data, dict):
            raise ConfigError(f"{flag}: the recipe has {table} = {data!r}, which must be a table")
    if item is None:
        data[key] = _value(leaves[leaf], words, flag)
        return
    rows, index = data.setdefault(key, []), int(item[2])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{flag}: the recipe has {leaf} = {rows!r}, which must be a list of tables")
    if index > len(rows):
        raise ConfigError(f"{flag}: there are {len(rows)} {leaf}, the next one is --{leaf}.{len(rows)}")
    if index == len(rows):
        rows.append({})
    _put(_item(leaves[leaf]), rows[index], item[3], flag, words)  # type: ignore[arg-type]


def _value(hint: Any, words: Sequence[str], flag: str) -> Any:
    """Returns the value that a recipe would hold in a field of type `hint`."""
    value: Any
    if is_toml(hint):
        text = " ".join(words)
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{flag} takes a value in TOML, such as '{example(hint)}', not {text!r}") from error
    elif get_origin(hint) is tuple:
        args = get_args(hint)
        each = [args[0]] * len(words) if args[-1] is Ellipsis else [*args, *[str] * len(words)]
        value = [_scalar(option, word) for option, word in zip(each, words, strict=False)]
    elif hint is bool and not words:
        value = True
    elif len(words) == 1:
        value = _scalar(hint, words[0])
    else:
        recipe = "; a recipe comes before the flags" if flag.startswith("--") else ""
        found = f"not {', '.join(map(repr, words))}{recipe}" if words else "and has none"
        raise ConfigError(f"{flag} takes one value, {found}")
    try:
        convert(hint, value, "", flag)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix(": ")) from error
    return value


def _scalar(hint: Any, word: str) -> Any:
    """Returns the word as the first type of the hint that it fits; unchanged when it fits none."""
    for option in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if option is type(None) and word.lower() in ("none", "null"):
            return None
        if option is bool and word.lower() in ("true", "false"):
            return word.lower() == "true"
        if option in (int, float):
            with suppress(ValueError):
                return option(word)
        if get_origin(option) is Literal and word in map(str, get_args(option)):
            return next(choice for choice in get_args(option) if str(choice) == word)
    return word


def _leaves(cls: Any, data: Any, prefix: str = "") -> dict[str, Any]:
    """Returns dotted name → type of all fields that are not tables; `data` holds the kinds of tables with several."""
    found: dict[str, Any] = {}
    data = data if isinstance(data, Mapping) else {}
    if is_variant(cls):
        cls, found[f"{prefix}kind"] = choose(cls, data), str
    for name, hint in get_type_hints(cls).items():
        table = next((option for option in (hint, *get_args(hint)) if dataclasses.is_dataclass(option)), None)
        if table is not None and get_origin(hint) is not tuple:
            found |= _leaves(table, data.get(name), f"{prefix}{name}.")
        elif get_origin(hint) is not ClassVar:
            found[prefix + name] = hint
    return found


def _item(hint: Any) -> type | None:
    """Returns the dataclass of a field that holds a list of tables."""
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    return item if dataclasses.is_dataclass(item) and isinstance(item, type) else None


def is_toml(hint: Any) -> bool:
    """Returns whether a flag's value is written in TOML: a table or a list of tables."""
    return get_origin(hint) is dict or _item(hint) is not None


def example(hint: Any) -> str:
    """Returns a value in TOML: `[{root = "…"}]`."""
    item = _item(hint)
    names = [f.name for f in dataclasses.fields(item) if f.default is dataclasses.MISSING] if item else ["name"]
    table = ", ".join(f'{name} = "…"' for name in names)
    return f"[{{{table}}}]" if item else f"{{{table}}}"


def _advice(name: str, leaves: Mapping[str, Any], prefix: str) -> str:
    """Returns advice for an unknown flag."""
    spelled = {leaf: prefix + leaf.replace("_", "-") for leaf in leaves}
    inside = [spelled[leaf] for leaf in leaves if leaf.startswith(f"{name}.")]
    if inside:
        return f"{name} is a table, whose fields are {', '.join(inside)}"
    last = name.rpartition(".")[2]
    close = [leaf for leaf in leaves if leaf.rpartition(".")[2] == last] or nearest(name, leaves)
    return f"did you mean {' or '.join(spelled[leaf] for leaf in close)}?" if close else "look for it in the help"
