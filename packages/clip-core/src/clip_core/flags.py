"""Dotted flags: each one is a line of a recipe. `--optim.lr 1e-3` is `lr = 1e-3` in the table `[optim]`."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, get_origin

from clip_core.config import ConfigError, convert, item_types, leaves, table_of
from clip_core.suggest import did_you_mean

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
        known = leaves(cls, data)
        if name not in known:
            flags_of = [f"--{leaf.replace('_', '-')}" for leaf in known]
            raise ConfigError(f"unknown flag {flag}; {_advice(flag.replace('_', '-'), flags_of)}")
        hint, _ = known[name]
        if place and get_origin(hint) is not tuple:  # words beyond the one value are positional
            taken = int(hint is not bool or "".join(values[:1]).lower() in ("true", "false"))
            free += values[taken:]
            values = values[:taken]
        _put(data, name, flag, _value(hint, values, flag))
    if free:
        data[place] = _value(leaves(cls, data)[place][0], free, place.upper())


def _put(data: Any, name: str, flag: str, value: Any) -> None:
    """Sets the field with the dotted `name`; `tasks.0.root` is the field root of the first of the tables `tasks`."""
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
    data[path[-1]] = value


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
        each = (*item_types(hint, len(words)), *[str] * len(words))
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
    for read in (float,) if hint is float else (int, float, lambda text: _NAMED[text.lower()]):
        with suppress(ValueError, KeyError):
            return convert(hint, read(word), "")
    return word


def is_toml(hint: Any) -> bool:
    """Returns whether a flag's value is written in TOML: a table or a list of tables."""
    return get_origin(hint) is dict or (get_origin(hint) is tuple and table_of(hint) is not None)


def example(hint: Any) -> str:
    """Returns a value in TOML: `[{root = "…"}]`."""
    row = table_of(hint)
    names = [f.name for f in dataclasses.fields(row) if f.default is dataclasses.MISSING] if row else ["name"]
    table = ", ".join(f'{name} = "…"' for name in names)
    return f"[{{{table}}}]" if row else f"{{{table}}}"


def _advice(flag: str, known: Collection[str]) -> str:
    """Returns advice for an unknown flag."""
    if inside := [leaf for leaf in known if leaf.startswith(f"{flag}.")]:
        return f"it is a table, whose fields are {', '.join(inside)}"
    table, *row = re.split(r"\.(\d+)\.", flag)[:2]
    rows = {leaf[len(table) + 1 :].partition(".")[0] for leaf in known if leaf.startswith(f"{table}.")}
    if row and rows and row[0] not in rows:
        return f"there are {len(rows) - 1} {table[2:]}, the next one is {table}.{len(rows) - 1}"
    same = [leaf for leaf in known if leaf.lstrip("-").rpartition(".")[2] == flag.lstrip("-").rpartition(".")[2]]
    options: dict[str, Any] = {"most": len(same), "cutoff": 0} if same else {}
    return did_you_mean(flag, same or known, "look for it in the help", **options)
