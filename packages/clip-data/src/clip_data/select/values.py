"""Columns with missing entries, and the operations of the filter language on them, in three-valued logic.

A result is missing where an operand is missing, except where `and` and `or` are decided by the other operand
(Kleene's logic). NaN and the result of a division by zero are missing too. Arithmetic is done in float64;
comparisons of integers are exact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["number", "string", "bool", "other"]


class Value(NamedTuple):
    """One entry per row, or one for all rows (a literal)."""

    data: Any
    """numbers and bools: numpy array or scalar, False where a bool is missing; strings: arrow array or scalar"""
    valid: Any
    """numpy bool array or scalar: False where the entry is missing"""


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


def from_literal(value: bool | int | float | str) -> Value:
    return Value(pa.scalar(value) if isinstance(value, str) else value, np.True_)


# -- logic -------------------------------------------------------------------------------------------------------------


def all_of(values: Sequence[Value]) -> Value:
    return reduce(_and, values)


def any_of(values: Sequence[Value]) -> Value:
    return negation(reduce(_and, map(negation, values)))


def negation(value: Value) -> Value:
    return Value(np.logical_not(value.data) & value.valid, value.valid)


def _and(a: Value, b: Value) -> Value:
    is_false = (a.valid & np.logical_not(a.data)) | (b.valid & np.logical_not(b.data))
    valid = is_false | (a.valid & b.valid)
    return Value(valid & ~is_false, valid)


def is_missing(value: Value) -> Value:
    return Value(~value.valid, np.True_)


# -- comparison --------------------------------------------------------------------------------------------------------

_STRING_COMPARISONS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.lt: pc.less,
    operator.le: pc.less_equal,
    operator.gt: pc.greater,
    operator.ge: pc.greater_equal,
    operator.eq: pc.equal,
    operator.ne: pc.not_equal,
}
_COMPARISONS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.lt: np.less,
    operator.le: np.less_equal,
    operator.gt: np.greater,
    operator.ge: np.greater_equal,
    operator.eq: np.equal,
    operator.ne: np.not_equal,
}


def compare(operation: Callable[..., Any], a: Value, b: Value) -> Value:
    """`operation` is one of operator.lt, le, gt, ge, eq, ne. Strings compare by code points."""
    valid = a.valid & b.valid
    if isinstance(a.data, (pa.Array, pa.Scalar)):
        return Value(_numpy(_STRING_COMPARISONS[operation](a.data, b.data)) & valid, valid)
    return Value(_COMPARISONS[operation](a.data, b.data) & valid, valid)


def is_among(a: Value, literals: Sequence[Value]) -> Value:
    nowhere = Value(np.False_, np.True_)
    found = any_of([nowhere, *(compare(operator.eq, a, literal) for literal in literals)])
    return Value(found.data & a.valid, a.valid)


# -- numbers -----------------------------------------------------------------------------------------------------------


def arithmetic(operation: Callable[..., Any], *values: Value) -> Value:
    """`operation` is a numpy function of floats; a NaN it gives is a missing entry."""
    with np.errstate(all="ignore"):
        data = operation(*(np.where(value.valid, np.asarray(value.data, np.float64), np.nan) for value in values))
    return Value(data, ~np.isnan(data))


def divide(a: Any, b: Any) -> Any:
    return np.where(b == 0, np.nan, a / b)


def remainder(a: Any, b: Any) -> Any:
    """Python's %: the result has the sign of b."""
    return np.where(b == 0, np.nan, np.remainder(a, b))


# -- strings -----------------------------------------------------------------------------------------------------------


def lower(value: Value) -> Value:
    return Value(pc.utf8_lower(value.data), value.valid)


def contains(value: Value, part: str) -> Value:
    return Value(_numpy(pc.match_substring(value.data, part)) & value.valid, value.valid)


def _numpy(result: pa.Array | pa.Scalar) -> Any:
    return np.bool_(result.as_py()) if isinstance(result, pa.Scalar) else result.to_numpy(zero_copy_only=False)
