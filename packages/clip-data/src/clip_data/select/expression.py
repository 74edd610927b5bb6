"""The filter language: a subset of Python's expressions, over columns.

    width >= 64 and 0.5 <= aspect_ratio <= 2 and not has_url and lower(caption) != "image"

It has comparisons (also chained), `and`, `or`, `not`, `+ - * / %`, `in [literals]`, numbers, strings, True and False,
column names (`width`, or `sidecar.width` if several sets have one), and the functions is_null(x), lower(text),
contains(text, "part"), abs(x), min(x, y, …), max(x, y, …). The text is parsed, never executed. A row is kept if the
whole expression is true for it; a missing value is not true (see values.py).
"""

import ast
import io
import math
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clip_core import ClipError
from clip_data.errors import ClipDataError
from clip_data.select import values
from clip_data.select.columns import Catalog, Column, resolve
from clip_data.select.values import Kind, Value

MAX_CHARACTERS = 65_536
MAX_DEPTH = 100
Columns = Mapping[Column, Value]
Evaluate = Callable[[Columns], Value]


class _Operation(NamedTuple):
    takes: Kind | None
    """kind of the operands; None for any"""
    gives: Kind
    apply: Callable[..., Value]
    operands: range = range(1, 2)


def _numeric(function: Callable[..., np.ndarray], operands: range = range(1, 2)) -> _Operation:
    return _Operation("number", "number", partial(values.arithmetic, function), operands)


FUNCTIONS = {
    "is_null": _Operation(None, "bool", values.is_missing),
    "lower": _Operation("string", "string", values.lower),
    "contains": _Operation("string", "bool", values.contains, range(2, 3)),
    "abs": _numeric(np.abs),
    "min": _numeric(lambda *numbers: reduce(np.minimum, numbers), range(2, 100)),
    "max": _numeric(lambda *numbers: reduce(np.maximum, numbers), range(2, 100)),
}
_OPERATORS: dict[type[ast.AST], _Operation] = {
    ast.And: _Operation("bool", "bool", values.all_of),
    ast.Or: _Operation("bool", "bool", values.any_of),
    ast.Not: _Operation("bool", "bool", values.negation),
    ast.USub: _numeric(np.negative),
    ast.Add: _numeric(np.add),
    ast.Sub: _numeric(np.subtract),
    ast.Mult: _numeric(np.multiply),
    ast.Div: _numeric(values.divide),
    ast.Mod: _numeric(values.remainder),
}
_COMPARISONS: dict[type[ast.AST], values.Comparison] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_HINTS: dict[type[ast.AST], str] = {
    ast.BitAnd: "; use 'and'",
    ast.BitOr: "; use 'or'",
    ast.Invert: "; use 'not'",
    ast.Is: "; use == or is_null(…)",
    ast.IsNot: "; use != or not is_null(…)",
}
_NAMES = {"number": "number", "string": "string", "bool": "condition", "other": "value without comparison"}


@dataclass(frozen=True)
class Clause:
    """One operand of the top-level `and`."""

    text: str
    columns: frozenset[Column]
    evaluate: Evaluate

    def keeps(self, columns: Mapping[Column, pa.ChunkedArray], rows: int) -> np.ndarray:
        """Returns bool [rows]: where the clause is true. `columns` holds at least those of the clause."""
        result = self.evaluate({column: values.from_column(columns[column]) for column in self.columns})
        return np.broadcast_to(np.logical_and(result.data, result.valid), (rows,))


class _Node(NamedTuple):
    kind: Kind
    evaluate: Evaluate


def _applied(function: Callable[..., Value], *parts: Evaluate) -> Evaluate:
    return lambda columns: function(*(part(columns) for part in parts))


def parse_where(text: str, catalog: Catalog) -> list[Clause]:
    """Returns the clauses of an expression, checked against the columns of the catalog; [] for an empty text.

    Raises ClipDataError that quotes the offending part of the text.
    """
    text = text.replace("\n", " ").strip()
    if not text:
        return []
    clauses = []
    for part in _conjuncts(_parse(text)):
        compiler = _Compiler(text, catalog)
        node = compiler.compile(part, "bool")
        clauses.append(Clause(compiler.source(part), frozenset(compiler.columns), node.evaluate))
    return clauses


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_CHARACTERS:
        raise ClipDataError(f"where has {len(text)} characters; the limit is {MAX_CHARACTERS}")
    try:
        tree = ast.parse(text, mode="eval").body
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except SyntaxError as error:
        token = text[max((error.offset or 1) - 1, 0) :][:20]
        hint = "; equality is written ==" if token.startswith("=") else ""
        raise ClipDataError(f"where: {error.msg} at {token!r} in {text[:200]!r}{hint}") from error
    except (ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ClipDataError(f"where: cannot be parsed ({error or type(error).__name__}): {text[:80]!r}") from error
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    if comments:
        raise ClipDataError(f"where: {comments[0][:40]!r} is a comment and would hide what follows it: remove it")
    return tree


def _conjuncts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [part for value in node.values for part in _conjuncts(value)]
    return [node]


class _Compiler:
    """Compiles the syntax tree of one clause to a function of columns, and checks the kinds of all operands."""

    def __init__(self, text: str, catalog: Catalog) -> None:
        self.text = text
        self.catalog = catalog
        self.columns: set[Column] = set()
        self.depth = 0

    def source(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node) or ast.unparse(node)

    def error(self, node: ast.AST, message: str) -> ClipDataError:
        return ClipDataError(f"where: {self.source(node)[:80]!r} {message}")

    def foreign(self, node: ast.AST, op: ast.AST) -> ClipDataError:
        return self.error(node, f"is not part of the filter language{_HINTS.get(type(op), '')}")

    def compile(self, node: ast.expr, wanted: Kind | None = None) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(node, f"is nested more than {MAX_DEPTH} levels deep")
        compiled = self._literal(node) or self._compile(node)
        self.depth -= 1
        if wanted and compiled.kind != wanted:
            hint = "; compare it with a value" if wanted == "bool" else ""
            raise self.error(node, f"is a {_NAMES[compiled.kind]} where a {_NAMES[wanted]} is needed{hint}")
        return compiled

    def _compile(self, node: ast.expr) -> _Node:
        match node:
            case ast.Name(id=name):
                return self._column(node, name, "")
            case ast.Attribute(value=ast.Name(id=set_name), attr=name):
                return self._column(node, name, set_name)
            case ast.BoolOp(op=op, values=operands):
                return self._apply(_OPERATORS[type(op)], operands)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return self._apply(_OPERATORS[type(op)], [operand])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self._apply(_OPERATORS[type(op)], [left, right])
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                wanted = FUNCTIONS[name].operands
                if len(args) not in wanted:
                    raise self.error(node, f"gives {name} {len(args)} arguments instead of {wanted[0]}")
                if name == "contains" and not (isinstance(args[1], ast.Constant) and isinstance(args[1].value, str)):
                    raise self.error(args[1], "must be a string literal")
                return self._apply(FUNCTIONS[name], args)
            case ast.Call(func=function):
                raise self.error(function, f"is not a function of the filter language: {', '.join(FUNCTIONS)}")
        raise self.foreign(node, getattr(node, "op", node))

    def _apply(self, operation: _Operation, nodes: list[ast.expr]) -> _Node:
        parts = [self.compile(node, operation.takes).evaluate for node in nodes]
        return _Node(operation.gives, _applied(operation.apply, *parts))

    def _literal(self, node: ast.expr) -> _Node | None:
        """Compiles a constant or a number with a sign; returns None for anything else."""
        signed = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        inner = node.operand if signed else node  # type: ignore[attr-defined]
        if not isinstance(inner, ast.Constant):
            return None
        value = inner.value
        if isinstance(value, bool | str):
            if signed:
                raise self.error(node, "has a sign but is not a number")
            kind: Kind = "string" if isinstance(value, str) else "bool"
        elif isinstance(value, int | float):
            if not math.isfinite(value) if isinstance(value, float) else value >= 2**64:
                raise self.error(node, "is too large a number")
            kind, value = "number", -value if signed else value
        else:
            raise self.error(node, "is not a number, a string, True or False; a missing value is found with is_null(…)")
        constant = Value(pa.scalar(value) if isinstance(value, str) else value, np.True_)
        return _Node(kind, lambda columns: constant)

    def _column(self, node: ast.AST, name: str, set_name: str) -> _Node:
        if not set_name and name in FUNCTIONS:
            raise self.error(node, f"is a function: write {name}(…)")
        try:
            column = resolve(self.catalog, name, set_name)
        except ClipError as error:
            raise ClipDataError(f"where: {error}") from error
        self.columns.add(column)
        return _Node(values.kind_of(self.catalog[column[0]][column[1]]), lambda columns: columns[column])

    def _comparison(self, node: ast.Compare) -> _Node:
        parts: list[Evaluate] = []
        left = self.compile(node.left)
        for op, (left_node, right_node) in zip(node.ops, pairwise([node.left, *node.comparators]), strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                if right_node is not node.comparators[-1]:
                    raise self.error(node, "goes on after its list: write it as two conditions")
                found = _applied(values.is_among, left.evaluate, *self._elements(left_node, left.kind, right_node))
                parts.append(found if isinstance(op, ast.In) else _applied(values.negation, found))
                break
            right = self.compile(right_node)
            if type(op) not in _COMPARISONS:
                raise self.foreign(node, op)
            ordered = not isinstance(op, (ast.Eq, ast.NotEq))
            if left.kind != right.kind or left.kind == "other" or (left.kind == "bool" and ordered):
                raise self.error(node, f"compares a {_NAMES[left.kind]} with a {_NAMES[right.kind]}")
            compare = partial(values.compare, _COMPARISONS[type(op)])
            parts.append(_applied(compare, left.evaluate, right.evaluate))
            left = right
        return _Node("bool", _applied(values.all_of, *parts))

    def _elements(self, needle: ast.expr, kind: Kind, haystack: ast.expr) -> list[Evaluate]:
        """Compiles the list on the right of `in`, whose items have the kind of the expression on the left."""
        if not isinstance(haystack, (ast.List, ast.Tuple)):
            raise self.error(haystack, "must be a list of literals, e.g. [1, 2]")
        elements = []
        for item in haystack.elts:
            literal = self._literal(item)
            if literal is None:
                raise self.error(item, "in a list is not a literal")
            if literal.kind != kind:
                kinds = f"in a list is a {_NAMES[literal.kind]}, but {self.source(needle)!r} is a {_NAMES[kind]}"
                raise self.error(item, kinds)
            elements.append(literal.evaluate)
        return elements
