"""The filter language: Python's syntax for conditions over columns, nothing else of Python.

    width >= 64 and 0.5 <= aspect_ratio <= 2 and not has_url and lower(caption) != "image"

Comparisons (also chained), `and`, `or`, `not`, `+ - * / %`, `in [literals]`, numbers, strings, True and False, column
names (`width`, or `sidecar.width` where several sets have one), and the functions is_null(x), lower(text),
contains(text, "part"), abs(x), min(x, y, …), max(x, y, …). The text is parsed, never executed. A row is kept where the
whole is true: missing entries keep nothing (see values.py).
"""

from __future__ import annotations

import ast
import io
import math
import operator
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

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

_COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type, Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: values.divide,
    ast.Mod: values.remainder,
}
_HINTS: dict[type, str] = {
    ast.BitAnd: "; use 'and'",
    ast.BitOr: "; use 'or'",
    ast.Invert: "; use 'not'",
    ast.Is: "; use == or is_null(…)",
    ast.IsNot: "; use != or not is_null(…)",
}
FUNCTIONS = ("is_null", "lower", "contains", "abs", "min", "max")


@dataclass(frozen=True)
class Clause:
    """One operand of the top-level `and`."""

    text: str
    columns: frozenset[Column]
    evaluate: Callable[[Columns], Value]

    def keeps(self, columns: Mapping[Column, pa.ChunkedArray], rows: int) -> np.ndarray:
        """bool [rows]: where the clause is true. `columns` holds at least those of the clause."""
        result = self.evaluate({column: values.from_column(columns[column]) for column in self.columns})
        return np.broadcast_to(np.logical_and(result.data, result.valid), (rows,))


class _Node(NamedTuple):
    kind: Kind
    evaluate: Callable[[Columns], Value]


def parse_where(text: str, catalog: Catalog) -> list[Clause]:
    """The clauses of an expression, checked against the columns there are; [] for an empty text.

    Raises ClipDataError naming the offending piece of the text.
    """
    text = text.replace("\n", " ").strip()
    if not text:
        return []
    tree = _parse(text)
    clauses = []
    for part in _conjuncts(tree):
        compiler = _Compiler(text, catalog)
        node = compiler.compile(part)
        compiler.expect("bool", node.kind, part)
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
        raise ClipDataError(f"where: {comments[0][:40]!r} is a comment, and would hide what follows it: remove it")
    return tree


def _conjuncts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [part for value in node.values for part in _conjuncts(value)]
    return [node]


class _Compiler:
    """Turns the syntax tree of one clause into a function of columns, with the kinds checked beforehand."""

    def __init__(self, text: str, catalog: Catalog) -> None:
        self.text = text
        self.catalog = catalog
        self.columns: set[Column] = set()
        self.depth = 0

    def source(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node) or ast.unparse(node)

    def error(self, node: ast.AST, message: str) -> ClipDataError:
        return ClipDataError(f"where: {self.source(node)[:80]!r} {message}")

    def expect(self, wanted: Kind, kind: Kind, node: ast.AST) -> None:
        if kind != wanted:
            way = "; compare it with something" if wanted == "bool" else ""
            raise self.error(node, f"is a {_name(kind)} where a {_name(wanted)} is needed{way}")

    def compile(self, node: ast.expr) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(node, f"is nested more than {MAX_DEPTH} levels deep")
        compiled = self._compile(node)
        self.depth -= 1
        return compiled

    def _compile(self, node: ast.expr) -> _Node:
        literal = self._literal(node)
        if literal is not None:
            return literal
        match node:
            case ast.Name(id=name):
                return self._column(node, name, "")
            case ast.Attribute(value=ast.Name(id=set_name), attr=name):
                return self._column(node, name, set_name)
            case ast.BoolOp(op=op, values=operands):
                parts = self._operands("bool", operands)
                combine = values.all_of if isinstance(op, ast.And) else values.any_of
                return _Node("bool", lambda columns: combine([part(columns) for part in parts]))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                (inner,) = self._operands("bool", [operand])
                return _Node("bool", lambda columns: values.negation(inner(columns)))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._arithmetic(np.negative, [operand])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return self._arithmetic(_ARITHMETIC[type(op)], [left, right])
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                return self._call(node, name, args)
            case ast.Call(func=function):
                raise self.error(function, f"is not a function of the filter language: {', '.join(FUNCTIONS)}")
        raise self.error(node, f"is not part of the filter language{_hint(getattr(node, 'op', None))}")

    def _operands(self, kind: Kind, nodes: list[ast.expr]) -> list[Callable[[Columns], Value]]:
        compiled = [self.compile(node) for node in nodes]
        for node, part in zip(nodes, compiled, strict=True):
            self.expect(kind, part.kind, node)
        return [part.evaluate for part in compiled]

    def _arithmetic(self, operation: Callable[..., Any], nodes: list[ast.expr]) -> _Node:
        parts = self._operands("number", nodes)
        return _Node("number", lambda columns: values.arithmetic(operation, *(part(columns) for part in parts)))

    def _literal(self, node: ast.expr) -> _Node | None:
        """A constant, or a number with a sign; None for anything else."""
        sign = 1
        inner: ast.expr = node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            inner, sign = node.operand, -1
        if not isinstance(inner, ast.Constant):
            return None
        value = inner.value
        if isinstance(value, (bool, str)):
            if sign == -1:
                raise self.error(node, "has a sign but is not a number")
            constant = values.from_literal(value)
            return _Node("bool" if isinstance(value, bool) else "string", lambda columns: constant)
        if isinstance(value, (int, float)):
            if not math.isfinite(value) if isinstance(value, float) else value >= 2**64:
                raise self.error(node, "is too large a number")
            constant = values.from_literal(sign * value)
            return _Node("number", lambda columns: constant)
        raise self.error(node, "is not a number, a string, True or False; a missing entry is found with is_null(…)")

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
        parts: list[Callable[[Columns], Value]] = []
        left_node, left = node.left, self.compile(node.left)
        for position, (op, right_node) in enumerate(zip(node.ops, node.comparators, strict=True)):
            if isinstance(op, (ast.In, ast.NotIn)):
                parts.append(self._membership(left_node, left, right_node, isinstance(op, ast.NotIn)))
                if position + 1 < len(node.ops):
                    raise self.error(node, "goes on after its list: write it as two conditions")
                break
            right = self.compile(right_node)
            if type(op) not in _COMPARISONS:
                raise self.error(node, f"is not part of the filter language{_hint(op)}")
            ordered = not isinstance(op, (ast.Eq, ast.NotEq))
            if left.kind != right.kind or left.kind == "other" or (left.kind == "bool" and ordered):
                raise self.error(node, f"compares a {_name(left.kind)} with a {_name(right.kind)}")
            parts.append(partial(_compare, _COMPARISONS[type(op)], left.evaluate, right.evaluate))
            left_node, left = right_node, right
        return _Node("bool", lambda columns: values.all_of([part(columns) for part in parts]))

    def _membership(
        self, node: ast.expr, needle: _Node, haystack: ast.expr, is_negated: bool
    ) -> Callable[[Columns], Value]:
        if not isinstance(haystack, (ast.List, ast.Tuple)):
            raise self.error(haystack, "must be a list of literals, e.g. [1, 2]")
        literals = []
        for item in haystack.elts:
            literal = self._literal(item)
            if literal is None:
                raise self.error(item, "in a list is not a literal")
            if needle.kind == "other" or literal.kind != needle.kind:
                kinds = f"in a list is a {_name(literal.kind)}, but {self.source(node)!r} a {_name(needle.kind)}"
                raise self.error(item, kinds)
            literals.append(literal.evaluate({}))
        if is_negated:
            return lambda columns: values.negation(values.is_among(needle.evaluate(columns), literals))
        return lambda columns: values.is_among(needle.evaluate(columns), literals)

    def _call(self, node: ast.Call, name: str, args: list[ast.expr]) -> _Node:
        wanted = {"min": range(2, 100), "max": range(2, 100), "contains": range(2, 3)}.get(name, range(1, 2))
        if len(args) not in wanted:
            raise self.error(node, f"gives {name} {len(args)} arguments instead of {wanted[0]}")
        if name == "is_null":
            inner = self.compile(args[0]).evaluate
            return _Node("bool", lambda columns: values.is_missing(inner(columns)))
        if name == "lower":
            (text,) = self._operands("string", args)
            return _Node("string", lambda columns: values.lower(text(columns)))
        if name == "contains":
            (text,) = self._operands("string", args[:1])
            part = args[1].value if isinstance(args[1], ast.Constant) else None
            if not isinstance(part, str):
                raise self.error(args[1], "must be a string literal")
            return _Node("bool", lambda columns: values.contains(text(columns), part))
        if name == "abs":
            return self._arithmetic(np.abs, args)
        pairwise = np.minimum if name == "min" else np.maximum
        return self._arithmetic(lambda *numbers: reduce(pairwise, numbers), args)


def _compare(
    operation: Callable[..., Any], a: Callable[[Columns], Value], b: Callable[[Columns], Value], columns: Columns
) -> Value:
    return values.compare(operation, a(columns), b(columns))


def _hint(op: ast.AST | None) -> str:
    return _HINTS.get(type(op), "") if op is not None else ""


def _name(kind: Kind) -> str:
    return {"number": "number", "string": "string", "bool": "condition", "other": "value without comparison"}[kind]
