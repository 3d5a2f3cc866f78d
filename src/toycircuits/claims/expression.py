"""The language of `value:` in a claim: columns, numbers, arithmetic, comparisons, few functions.

Python's parser reads the text. Of its syntax tree we take only what the tables below name, and we
calculate it ourselves: nothing in a file of claims is ever run as code.
"""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

ARITHMETIC: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.Mod: ("%", operator.mod),
    ast.Pow: ("**", operator.pow),
}
LOGIC: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.BitAnd: ("&", operator.and_),
    ast.BitOr: ("|", operator.or_),
}
COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sqrt": np.sqrt,
}
ALLOWED = (
    f"names of columns, numbers, + - * / % **, < <= > >= == !=, & |, ( ), {', '.join(FUNCTIONS)}"
)
CHARACTERS = r"[A-Za-z0-9_ .+\-*/%<>=!&|()]*"  # ASCII: Python takes some other letters for these
LONGEST, DEEPEST = 200, 20  # characters, nested operations
LARGEST_POWER = 10
LARGEST_NUMBER = 2**53  # up to here, all integers are floats

Tree: TypeAlias = "float | int | Column | Operation"


@dataclass(frozen=True)
class Column:
    """The column `name` of a table; the text has it at `position`, counted from 1."""

    name: str
    position: int


@dataclass(frozen=True)
class Operation:
    """A function of one or two operands.

    Attributes:
        kind: "arithmetic", "comparison" or "logic"; it says which operands fit.
    """

    symbol: str
    function: Callable[..., Any]
    operands: tuple[Tree, ...]
    kind: str
    position: int


@lru_cache(1000)
def parse(text: str) -> Tree:
    """The expression that `text` writes.

    Raises:
        ValueError: it is none; the message says what was found at which character.

    >>> parse("2 * 3 - 1")
    5.0
    >>> parse("loss.mean()")
    Traceback (most recent call last):
    ValueError: character 1: found 'loss.mean'; allowed: names of columns, numbers, \
+ - * / % **, < <= > >= == !=, & |, ( ), abs, exp, log, log2, log10, sqrt
    """
    if len(text) > LONGEST:
        raise ValueError(f"found {len(text)} characters; allowed: {LONGEST}")
    plain = re.match(CHARACTERS, text)
    if plain and plain.end() < len(text):
        raise _error(plain.end(), text[plain.end()])
    start = len(text) - len(text.lstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "invalid decimal literal"
            tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        place = start + max(error.offset or 1, 1) - 1
        raise _error(place, text[place:].strip() or "the end") from None
    return _Builder(text, start).build(tree)


def _error(place: int, found: str) -> ValueError:
    return ValueError(f"character {place + 1}: found {found[:40]!r}; allowed: {ALLOWED}")


class _Builder:
    """Turns Python's syntax tree of `text`, less the `start` characters before it, into ours."""

    def __init__(self, text: str, start: int) -> None:
        self._text, self._start = text, start

    def build(self, node: ast.expr, depth: int = 0) -> Tree:
        """Our tree of `node`; raises a ValueError for a node that is not allowed."""
        if depth > DEEPEST:
            raise ValueError(f"nested too deeply; allowed: {DEEPEST} operations in one another")
        match node:
            case ast.Constant(value=int() | float() as number) if type(number) is not bool:
                if abs(number) > LARGEST_NUMBER:
                    raise self._refuse(node, f"at most {LARGEST_NUMBER}")
                return number
            case ast.Name(id=name):
                if name in FUNCTIONS:
                    raise self._refuse(node, f"{name}(...)")
                return Column(name, self._place(node) + 1)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return self._join(node, "-", operator.neg, [inner], "arithmetic", depth)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if (
                name in FUNCTIONS
            ):
                return self._join(node, name, FUNCTIONS[name], [argument], "arithmetic", depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return self._join(node, *ARITHMETIC[type(op)], [left, right], "arithmetic", depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in LOGIC:
                return self._join(node, *LOGIC[type(op)], [left, right], "logic", depth)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARISONS:
                return self._join(node, *COMPARISONS[type(op)], [left, right], "comparison", depth)
            case ast.Call(func=ast.expr() as function_node):
                raise self._refuse(function_node)
            case ast.Compare(ops=[_, _, *_]):
                raise self._refuse(node, "one comparison, as in (a < b) & (b < c)")
            case _:
                raise self._refuse(node)

    def _join(
        self,
        node: ast.expr,
        symbol: str,
        function: Callable[..., Any],
        nodes: list[ast.expr],
        kind: str,
        depth: int,
    ) -> Tree:
        """The operation, or its value if all operands are numbers."""
        operands = tuple(self.build(inner, depth + 1) for inner in nodes)
        if symbol == "**" and not (
            isinstance(operands[1], int | float) and abs(operands[1]) <= LARGEST_POWER
        ):
            raise self._refuse(nodes[1], f"a number up to {LARGEST_POWER} after **")
        numbers = [np.float64(operand) for operand in operands if isinstance(operand, int | float)]
        if len(numbers) < len(operands):
            return Operation(symbol, function, operands, kind, self._place(node) + 1)
        if kind != "arithmetic":
            raise self._refuse(node, "a column in it")
        with np.errstate(all="ignore"):
            value = function(*numbers)
        if not math.isfinite(value):
            raise self._refuse(node, "a finite number")
        return float(value)

    def _place(self, node: ast.expr) -> int:
        return self._start + node.col_offset

    def _refuse(self, node: ast.expr, allowed: str = ALLOWED) -> ValueError:
        place = self._place(node)
        found = self._text[place : self._start + (node.end_col_offset or 0)]
        return ValueError(f"character {place + 1}: found {found[:40]!r}; allowed: {allowed}")


def columns(tree: Tree) -> Iterator[Column]:
    """The columns in `tree`, in the order of the text."""
    if isinstance(tree, Column):
        yield tree
    elif isinstance(tree, Operation):
        for operand in tree.operands:
            yield from columns(operand)


def evaluate(tree: Tree, table: pd.DataFrame) -> "pd.Series[Any]":
    """The value of `tree` in each row of `table`. A division by 0 gives an infinity or NaN.

    Raises:
        ValueError: there is no such column, its values do not fit, or an integer is too large.
    """
    if not (used := [*columns(tree)]):
        raise ValueError("found no column in it; allowed: at least one")
    for column in used:
        if column.name not in table:
            there = ", ".join(map(str, table))
            found = f"found {column.name!r}"
            raise ValueError(f"character {column.position}: {found}; there are: {there}")
    with np.errstate(all="ignore"):
        return pd.Series(_value(tree, table))


def _value(tree: Tree, table: pd.DataFrame) -> Any:
    if isinstance(tree, Column):
        return table[tree.name]
    if not isinstance(tree, Operation):
        return tree
    operands = [_operand(operand, table, tree) for operand in tree.operands]
    result = tree.function(*operands)
    if tree.kind == "arithmetic" and pd.api.types.is_integer_dtype(result):
        exact = tree.function(*(np.asarray(operand, dtype=float) for operand in operands))
        if np.any(np.abs(exact) >= 2.0**63):
            raise ValueError(f"character {tree.position}: the result of {tree.symbol} is too large")
    return result


def _operand(tree: Tree, table: pd.DataFrame, operation: Operation) -> Any:
    """The value of `tree`, as the `operation` needs it: numbers, or true and false."""
    value = _value(tree, table)
    if isinstance(value, int | float):
        is_number, is_condition = True, False
    else:
        is_condition = pd.api.types.is_bool_dtype(value)
        is_number = is_condition or pd.api.types.is_numeric_dtype(value)
    if not (is_condition if operation.kind == "logic" else is_number):
        needs = "conditions" if operation.kind == "logic" else "numbers"
        raise ValueError(
            f"character {operation.position}: found something else beside {operation.symbol}; "
            f"allowed: {needs}"
        )
    return value.astype(int) if is_condition and operation.kind == "arithmetic" else value
