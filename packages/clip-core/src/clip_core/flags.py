"""Dotted flags: each one is a line of a recipe. `--optim.lr 1e-3` is `lr = 1e-3` in the table `[optim]`."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from clip_core.config import ConfigError, choose, convert, is_variant

_NAMED = {"true": True, "false": False, "none": None, "null": None}


def positional(cls: type) -> str:
    """Returns the field that takes the words without a flag, `field(metadata={"positional": True})`; "" without one."""
    return next((f.name for f in dataclasses.fields(cls) if f.metadata.get("positional")), "")


def put_flags(cls: type, data: dict[str, Any], words: Sequence[str]) -> None:
    """Sets the values of the flags among `words` in `data`, a recipe's content for `cls`. Raises ConfigError."""
    flags: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if re.match("--[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            flags.append((flag, [value] if equals else []))
        else:
            flags[-1][1].append(word)
    place, free, given = positional(cls), flags.pop(0)[1], dict[str, str]()
    if free and not place:
        raise ConfigError(f"{free[0]!r} is not a flag: flags begin with two dashes and a letter")
    flags.sort(key=lambda flag: not flag[0].endswith("kind"))  # the kind of a table decides which flags it has
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


def _put(cls: type, data: Any, name: str, flag: str, words: Sequence[str]) -> None:
    """Sets the field with the dotted `name`; `tasks.0.root` is the field root of the first of the tables `tasks`."""
    leaves = _leaves(cls, data)
    if name not in leaves:
        raise ConfigError(f"unknown flag {flag}; {_advice(name, leaves, flag[: -len(name)])}")
    path = name.split(".")
    for table, inside in itertools.pairwise(path):
        kind, wanted = (list, "a list of tables") if inside.isdigit() else (dict, "a table")
        if isinstance(data, list):
            data.extend([{}] if int(table) == len(data) else [])
            data = data[int(table)]
        else:
            if data.get(table) is None:
                data[table] = kind()
            data = data[table]
        if not isinstance(data, kind):
            raise ConfigError(f"{flag}: the recipe has {table} = {data!r}, which must be {wanted}")
    data[path[-1]] = _value(leaves[name], words, flag)


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
    convert(hint, value, flag)
    return value


def _scalar(hint: Any, word: str) -> Any:
    """Returns the first reading of the word that fits the hint; the word itself when none does."""
    readings = (float,) if hint is float else (int, float, lambda text: _NAMED[text.lower()])
    for read in readings:
        with suppress(ValueError, KeyError):
            value = read(word)
            convert(hint, value, "")
            return value
    return word


def _leaves(cls: Any, data: Any, prefix: str = "") -> dict[str, Any]:
    """Returns dotted name → type of all fields that are not tables, in lists of tables with one more than there are.

    `data` holds the lists, and the kinds of tables that come in several.
    """
    found: dict[str, Any] = {}
    data = data if isinstance(data, Mapping) else {}
    if is_variant(cls):
        cls, found[f"{prefix}kind"] = choose(cls, data, prefix), str
    for name, hint in get_type_hints(cls).items():
        table = next((option for option in (hint, *get_args(hint)) if dataclasses.is_dataclass(option)), None)
        if table is not None and get_origin(hint) is not tuple:
            found |= _leaves(table, data.get(name), f"{prefix}{name}.")
        elif get_origin(hint) is not ClassVar:
            found[prefix + name] = hint
            rows = data.get(name)
            for index, row in enumerate([*rows, None] if isinstance(rows, list) else [None]) if table else ():
                found |= _leaves(table, row, f"{prefix}{name}.{index}.")
    return found


def _item(hint: Any) -> Any:
    """Returns the dataclass of a field that holds a list of tables, else None."""
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    return item if dataclasses.is_dataclass(item) else None


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
    inside = [leaf for leaf in leaves if leaf.startswith(f"{name}.")]
    last = name.rpartition(".")[2]
    close = inside or [leaf for leaf in leaves if leaf.rpartition(".")[2] == last] or get_close_matches(name, leaves, 1)
    spelled = [prefix + leaf.replace("_", "-") for leaf in close]
    if inside:
        return f"{name} is a table, whose fields are {', '.join(spelled)}"
    return f"did you mean {' or '.join(spelled)}?" if close else "look for it in the help"
