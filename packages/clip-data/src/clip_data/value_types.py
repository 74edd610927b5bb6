"""The Arrow type of a text table's column: the narrowest type that keeps every value of the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

EXACT = 2**53  # up to this, every integer is a 64-bit float
SHORT = 15  # decimal digits that every 64-bit float keeps
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?|nan|NaN|-?inf")
BOOLEANS = {"true": True, "false": False, "True": True, "False": False, "TRUE": True, "FALSE": False}

TYPES = (  # a column has the first type that holds all its kinds
    ("bool_", {"boolean"}),
    ("int64", {"negative integer", "integer", "integer beyond 2^53", "integer below -2^53"}),
    ("uint64", {"integer", "integer beyond 2^53", "integer beyond 2^63"}),
    ("float64", {"negative integer", "integer", "number"}),
    ("string", {"text"}),
)


class Inexact(float):
    """A number with more digits than a 64-bit float keeps."""


def keeps(text: str, value: float) -> bool:
    """Returns whether a 64-bit float keeps a number: with the digits of the text it reads the same."""
    if repr(value) == text or (len(text) <= SHORT and "e" not in text and "E" not in text):
        return True
    exact = Decimal(text)
    return exact.is_nan() or exact == Decimal(f"{value:.{len(exact.as_tuple().digits) - 1}e}")


def json_number(text: str) -> float:
    """Parses a JSON number with a fraction or an exponent."""
    value = float(text)
    return value if NUMBER.fullmatch(text) and keeps(text, value) else Inexact(value)


def json_kind(value: Any) -> str:
    """Returns the kind of a value of a JSON table; "" for null."""
    return _integer_kind(value) if type(value) is int else _JSON_KINDS[type(value)]


_JSON_KINDS = {
    type(None): "",
    bool: "boolean",
    float: "number",
    Inexact: "number with more digits than 64 bits keep",
    str: "text",
    list: "list",
    dict: "object",
}


def text_kind(text: str) -> str:
    """Returns the kind of a field of a csv or tsv file; "" for an empty one. Leading zeros, for example, make text."""
    if INTEGER.fullmatch(text):
        return _integer_kind(int(text))
    if NUMBER.fullmatch(text) and keeps(text, float(text)):
        return "number"
    return "boolean" if text in BOOLEANS else "text" if text else ""


def _integer_kind(value: int) -> str:
    if 0 <= value <= EXACT:
        return "integer"
    if -EXACT <= value < 0:
        return "negative integer"
    if -(2**63) <= value < 2**63:
        return "integer beyond 2^53" if value > 0 else "integer below -2^53"
    return "integer beyond 2^63" if 0 < value < 2**64 else "integer of more than 64 bits"


class ColumnType:
    """The kinds of the values of a column so far."""

    def __init__(self, kind: Callable[[Any], str]) -> None:
        self.kind = kind
        self.first: dict[str, int] = {}
        """line of the first value of each kind"""
        self.items: ColumnType | None = None
        """of the elements of lists"""
        self.fields: dict[str, ColumnType] = {}
        """of the values of objects"""

    def add(self, values: Sequence[Any], lines: Sequence[int]) -> None:
        if self.kind is text_kind and "text" in self.first:
            return  # all values are kept as written
        kinds = list(map(self.kind, values))
        for kind in dict.fromkeys(kinds):
            if kind:
                self.first.setdefault(kind, lines[kinds.index(kind)])
        if "list" in self.first:
            self.items = self.items or ColumnType(self.kind)
            pairs = [(item, line) for v, k, line in zip(values, kinds, lines, strict=True) if k == "list" for item in v]
            self.items.add([item for item, _ in pairs], [line for _, line in pairs])
        if "object" in self.first:
            objects = [(v, line) for v, k, line in zip(values, kinds, lines, strict=True) if k == "object"]
            for key in dict.fromkeys(key for value, _ in objects for key in value):
                column = self.fields.setdefault(key, ColumnType(self.kind))
                column.add([value.get(key) for value, _ in objects], [line for _, line in objects])

    def type(self) -> pa.DataType:
        """Returns the type. Raises ValueError, with the kinds and their first lines, if no type keeps all values.

        A column without values has strings. A csv or tsv column of several kinds keeps its fields as strings.
        """
        import pyarrow as pa

        kinds = self.first.keys()
        for name, held in TYPES if kinds else TYPES[-1:]:
            if kinds <= held:
                return getattr(pa, name)()
        if self.kind is text_kind:
            return pa.string()
        if kinds == {"list"} and self.items:
            return pa.list_(self.items.type())
        if kinds == {"object"} and self.fields:
            return pa.struct([(key, column.type()) for key, column in self.fields.items()])
        found = ", ".join(f"{kind} (first in line {line})" for kind, line in self.first.items())
        raise ValueError(f"no single type keeps all its values: {found}; use one kind, for example strings")


def parse_text(values: Sequence[str], kind: pa.DataType) -> Sequence[Any]:
    """Returns the fields of a csv or tsv column as values of its type; empty ones are null unless it is string."""
    import pyarrow.types as kinds

    if kinds.is_string(kind):
        return values
    parse = BOOLEANS.__getitem__ if kinds.is_boolean(kind) else float if kinds.is_floating(kind) else int
    return [parse(value) if value else None for value in values]
