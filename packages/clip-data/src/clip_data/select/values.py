"""Columns with missing values, and the operations of the filter language on them, in Kleene's three-valued logic.

A result is missing if an operand is, unless the other operand decides an `and` or `or`. NaN and the result of a
division by zero are missing too. Arithmetic is done in float64; comparisons of integers are exact.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["number", "string", "bool", "other"]
Comparison = Literal["less", "less_equal", "greater", "greater_equal", "equal", "not_equal"]
"""names of functions that numpy and Arrow both have"""


class Value(NamedTuple):
    """One value per row, or one for all rows (a literal)."""

    data: Any
    """numbers and bools: numpy array or scalar, False where a bool is missing; strings: arrow array or scalar"""
    valid: Any
    """numpy bool array or scalar: False where the value is missing"""


def kind_of(type_: pa.DataType) -> Kind:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "string"
    return "other"


def from_column(column: pa.ChunkedArray) -> Value:
    kind, type_ = kind_of(column.type), column.type
    valid = column.is_valid().to_numpy()
    if kind == "other":
        return Value(None, valid)
    if kind == "string":
        return Value(column.cast(pa.string()).combine_chunks().fill_null(""), valid)
    if kind == "bool":
        return Value(column.fill_null(False).to_numpy(), valid)
    if not pa.types.is_integer(type_):  # float32 too: numpy would round a literal to it before comparing
        column = column.cast(pa.float64())
    data = column.fill_null(pa.scalar(0).cast(column.type)).to_numpy()
    return Value(data, valid & ~np.isnan(data)) if data.dtype.kind == "f" else Value(data, valid)


def all_of(*values: Value) -> Value:
    return reduce(_and, values)


def any_of(*values: Value) -> Value:
    return negation(all_of(*map(negation, values)))


def negation(value: Value) -> Value:
    return Value(np.logical_not(value.data) & value.valid, value.valid)


def _and(a: Value, b: Value) -> Value:
    is_false = (a.valid & np.logical_not(a.data)) | (b.valid & np.logical_not(b.data))
    valid = is_false | (a.valid & b.valid)
    return Value(valid & ~is_false, valid)


def is_missing(value: Value) -> Value:
    return Value(~value.valid, np.True_)


def compare(how: Comparison, a: Value, b: Value) -> Value:
    """Returns the bools of a comparison. Strings compare by code points."""
    valid = a.valid & b.valid
    if isinstance(a.data, (pa.Array, pa.Scalar)):
        return Value(_numpy(getattr(pc, how)(a.data, b.data)) & valid, valid)
    return Value(getattr(np, how)(a.data, b.data) & valid, valid)


def is_among(a: Value, *literals: Value) -> Value:
    nowhere = Value(np.False_, np.True_)
    found = any_of(nowhere, *(compare("equal", a, literal) for literal in literals))
    return Value(found.data & a.valid, a.valid)


def arithmetic(operation: Callable[..., Any], *values: Value) -> Value:
    """Applies a numpy function of floats; a NaN in its result is a missing value."""
    with np.errstate(all="ignore"):
        data = operation(*(np.where(value.valid, np.asarray(value.data, np.float64), np.nan) for value in values))
    return Value(data, ~np.isnan(data))


def divide(a: Any, b: Any) -> Any:
    return np.where(b == 0, np.nan, a / b)


def remainder(a: Any, b: Any) -> Any:
    """Returns Python's a % b, which has the sign of b."""
    return np.where(b == 0, np.nan, np.remainder(a, b))


def lower(value: Value) -> Value:
    return Value(pc.utf8_lower(value.data), value.valid)


def contains(value: Value, part: Value) -> Value:
    """Returns where a string contains another one, which is a literal."""
    return Value(_numpy(pc.match_substring(value.data, part.data.as_py())) & value.valid, value.valid)


def _numpy(result: pa.Array | pa.Scalar) -> Any:
    return np.bool_(result.as_py()) if isinstance(result, pa.Scalar) else result.to_numpy(zero_copy_only=False)
