"""A file of claims: statements about an experiment, and what its tables must hold for each.

Each experiment has a file `claims/<experiment>.yaml`. A claim names cells of a table, a condition
that their values must meet, and the scales at which the comparison makes sense. `lookup.py` finds
the values in the tables, and `verdict.py` compares them with the condition.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from pydantic import Field, field_validator, model_validator

from toycircuits.claims.expression import columns, parse
from toycircuits.core.config import InputError, Settings, read_yaml
from toycircuits.core.messages import quoted, short

Scalar: TypeAlias = bool | int | float | str
Rows: TypeAlias = dict[str, Scalar | list[Scalar]]
Reduction = Literal["max", "min", "mean", "sum", "count", "list"]
NUMBER = (bool, int, float, np.bool_, np.number)  # types that can be compared with a bound
NEAR = ("within", "relative", "factor")
BOUNDS = ("at_least", "at_most", "above", "below")


def _is_finite(value: Any) -> bool:
    """Whether `value` contains no NaN and no infinite number."""
    try:
        json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        return False
    return True


class Measured(Settings):
    """Where the tables of an experiment hold one measured value for each model.

    Attributes:
        table: name of a table. A name like `training` or `ablations` means that table of all runs
            together. A name like `summary/grid` means a table that summarises the runs.
        where: column -> the value, or the list of values, that the rows must have. In the column
            `step`, "first" and "last" mean the first and last step of each model among the rows
            that match all other columns.
        value: a column, or an expression of columns, as `expression.py` reads it.
        reduce: how several rows of one model become one value.
        minus: subtract the value of the rows that match `where` with these columns changed.
        over: divide by the value of the rows that match `where` with these columns changed.
    """

    table: str
    where: Rows = Field(default={})
    value: str = Field(min_length=1)
    reduce: Reduction | None = None
    minus: Rows | None = None
    over: Rows | None = None

    @field_validator("value")
    @classmethod
    def _check_value(cls, value: str) -> str:
        if not any(columns(parse(value))):
            raise ValueError(f"found {quoted(value)}; allowed: an expression with a column")
        return value

    @model_validator(mode="after")
    def _check_other_rows(self) -> Self:
        if self.minus is not None and self.over is not None:
            raise ValueError("minus and over: found both; allowed: one of them")
        for name in ("minus", "over"):
            change = getattr(self, name)
            if change is not None and self.where | change == self.where:
                text = f"{name}: found {json.dumps(change)}"
                raise ValueError(f"{text}; allowed: a column with another value than in where")
        return self


class Condition(Settings):
    """What a value must fulfil. If several keys are given, the value must meet all of them.

    Attributes:
        equal: the value itself, or a list of values.
        within: greatest allowed distance from `equal`. If `equal` is a list, the greatest distance
            of each number from its partner in the list.
        relative: greatest allowed distance from `equal`, as a share of `equal`.
        factor: the value may be this many times smaller or greater than `equal`.
        between: lowest and highest allowed value, or a list of such pairs, one of which must fit.
        at_least: lowest allowed value.
        at_most: highest allowed value.
        above: the value must be greater than this.
        below: the value must be smaller than this.
    """

    equal: Scalar | list[Any] | None = None
    within: float | None = Field(default=None, ge=0)
    relative: float | None = Field(default=None, gt=0)
    factor: float | None = Field(default=None, gt=1)
    between: tuple[float, float] | list[tuple[float, float]] | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        near = given & {*NEAR}
        if not given - near:
            raise ValueError(f"found no condition; allowed: equal, between, {', '.join(BOUNDS)}")
        if len(near) > 1 or (near and "equal" not in given):
            raise ValueError("within, relative, factor: give only one of them, together with equal")
        if self.between == []:
            raise ValueError("between: found []; allowed: two numbers, or a list of such pairs")
        if wrong := [list(pair) for pair in self._pairs() if pair[0] > pair[1]]:
            raise ValueError(f"between: found {short(wrong[0])}; allowed: the lower number first")
        self._check_equal(next(iter(near), None))
        if self._numeric_key() and not any(map(self.holds, self.test_points())):
            raise ValueError(f"found {self}; no number can meet this condition")
        return self

    def _check_equal(self, near: str | None) -> None:
        """Raise a `ValueError` if nothing can equal `equal`, or `near` does not go with it."""
        target: Any = self.equal
        text = f"equal: found {short(target)}"
        if not _is_finite(target) or target == []:
            allowed = "text, a finite number, or a list with at least one of them"
            raise ValueError(f"{text}; allowed: {allowed}")
        if isinstance(target, str | list) and (self._pairs() or self._bounds()):
            raise ValueError(f"{text} together with bounds; allowed: a number")
        if near is None:
            return
        parts = target if near == "within" and isinstance(target, list) else [target]
        if (
            not all(type(part) in (int, float) for part in parts)
            or (near == "factor" and target <= 0)
            or (near == "relative" and target == 0)
        ):
            kinds = {"within": " or a list", "factor": " above 0", "relative": " other than 0"}
            raise ValueError(f"{text} together with {near}; allowed: a number{kinds[near]}")

    def _pairs(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each range in `between`."""
        return [self.between] if isinstance(self.between, tuple) else self.between or []

    def _bounds(self) -> dict[str, float]:
        """Key -> bound, for the bounds that are given."""
        bounds = {name: getattr(self, name) for name in BOUNDS}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def _numeric_key(self) -> str | None:
        """The first key that only a number can meet, if there is one."""
        if isinstance(self.equal, list):
            return None
        keys = (*NEAR, "between", *BOUNDS)
        return next((key for key in keys if getattr(self, key) is not None), None)

    def test_points(self, low: float = -math.inf, high: float = math.inf) -> list[float]:
        """Numbers from `low` to `high` that decide what the condition accepts in this range.

        If any number of the range meets the condition, so does one of these numbers. If any number
        of the range fails it, so does one of these. They are the ends of all allowed ranges, the
        midpoints between these ends, and a number beyond either side.

        >>> Condition(above=0.0, at_most=2.0).test_points()
        [-1.0, 0.0, 1.0, 2.0, 3.0]
        """
        ends = [*self._bounds().values(), *(end for pair in self._pairs() for end in pair)]
        if isinstance(self.equal, bool | int | float):
            target = float(self.equal)
            width = self.within if self.within is not None else (self.relative or 0) * abs(target)
            factor = self.factor or 1
            ends += [target, target - width, target + width, target / factor, target * factor]
        points = sorted({float(end) for end in [*ends, low, high] if low <= end <= high})
        points = [point for point in points if math.isfinite(point)] or [0.0]
        midpoints = [(left + right) / 2 for left, right in itertools.pairwise(points)]
        beyond = [end for end in (points[0] - 1, points[-1] + 1) if low <= end <= high]
        return sorted([*points, *midpoints, *beyond])

    def holds(self, value: Any) -> bool:
        """Whether `value` meets the condition. A missing or infinite value does not.

        Raises:
            InputError: the condition needs a number, and `value` is not a number.
        """
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return False
        if (key := self._numeric_key()) and not isinstance(value, NUMBER):
            raise InputError(f"{key}: the measured value is {short(value)}; allowed: a number")
        pairs = self._pairs()
        return (
            (self.equal is None or self._is_equal(value))
            and (not pairs or any(low <= value <= high for low, high in pairs))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _is_equal(self, value: Any) -> bool:
        """Whether `value` is `equal`, or as close to it as the condition asks."""
        target: Any = self.equal
        if self.within is not None and isinstance(target, list):
            if not isinstance(value, list) or len(value) != len(target):
                return False
            if not all(isinstance(part, NUMBER) for part in value):
                raise InputError(f"within: the measured value is {short(value)}; allowed: numbers")
            pairs = zip(value, target, strict=True)
            return all(abs(part - wanted) <= self.within for part, wanted in pairs)
        if self.within is not None:
            return abs(value - target) <= self.within
        if self.relative is not None:
            return abs(value - target) <= self.relative * abs(target)
        if self.factor is not None:
            return target / self.factor <= value <= target * self.factor
        return bool(value == target)

    def __str__(self) -> str:
        parts = []
        if self.equal is not None:
            near = {"within": "± {}", "relative": "± {} of it", "factor": "within a factor {}"}
            given = {key: getattr(self, key) for key in near if getattr(self, key)}
            tolerance = [near[key].format(shown(number)) for key, number in given.items()]
            parts.append(" ".join([shown(self.equal), *tolerance]))
        if pairs := self._pairs():
            parts.append(" or ".join(f"{shown(low)} to {shown(high)}" for low, high in pairs))
        signs = {"at_least": "≥", "at_most": "≤", "above": ">", "below": "<"}
        parts += [f"{signs[name]} {shown(bound)}" for name, bound in self._bounds().items()]
        return " and ".join(parts)


class Claim(Settings):
    """A statement that can fail.

    Attributes:
        id: permanent name, unique in its file.
        statement: one sentence.
        source: who makes the statement: the original study, a later one, or this project.
        kind: exact (the same digits), statistical (about models drawn at random), or qualitative.
        published: the number or numbers that the source printed, shown beside the measured value.
        scales: the scales with the settings that the statement is about. At any other scale the
            claim is not comparable.
        measured: where the tables hold the value of each model.
        expected: condition on the value of every model, on their mean, or on the share of models
            that pass.
        of: which of these three `expected` is about.
        passes: condition that a model must meet to pass. Only for `of: share`.
        why: if the claim fails: the reason, and which run or table shows it.
    """

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    statement: str
    source: str
    kind: Literal["exact", "statistical", "qualitative"]
    published: Scalar | list[Any] | None = None
    scales: list[str] = Field(default=["paper"], min_length=1)
    measured: Measured
    expected: Condition
    of: Literal["every", "mean", "share"] = "every"
    passes: Condition | None = None
    why: str = ""

    @model_validator(mode="after")
    def _check_of(self) -> Self:
        if (self.of == "share") != (self.passes is not None):
            raise ValueError("passes: give it together with `of: share`, and only then")
        if self.of != "every":
            low, high = (0.0, 1.0) if self.of == "share" else (-math.inf, math.inf)
            points = self.expected.test_points(low, high)
            outcomes = {self.expected.holds(point) for point in points}
            if outcomes == {True}:
                raise ValueError(f"expected: found {self.expected}; every {self.of} meets this")
            if outcomes == {False}:
                raise ValueError(f"expected: found {self.expected}; no {self.of} can meet this")
        return self


class Card(Settings):
    """All that a file of claims says about its experiment.

    Attributes:
        title: heading on the page.
        question: one sentence.
        method: a few lines.
        key_metrics: name -> one of the few numbers that `dvc metrics show` prints. Each is a mean
            over models.
        claims: all claims about the experiment.
    """

    title: str
    question: str
    method: list[str]
    key_metrics: dict[str, Measured]
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if "claims" in self.key_metrics:
            raise ValueError(
                "key_metrics: found the name claims; choose another, as metrics.json counts the "
                "claims under this name"
            )
        ids = [claim.id for claim in self.claims]
        if repeated := sorted({name for name in ids if ids.count(name) > 1}):
            text = f"found more than once: {', '.join(repeated)}"
            raise ValueError(f"claims: ids {text}; allowed: each id once")
        return self


def read_card(path: Path) -> Card:
    """The content of the file of claims at `path`.

    Raises:
        InputError: one line with the file, the key, what was found and what is allowed.
    """
    return Card.parse(read_yaml(path), str(path))


def shown(value: Any, digits: int | None = None) -> str:
    """`value` as text for people.

    Args:
        digits: number of significant digits. Digits before the decimal point are never dropped. By
            default a number gets as many digits as it takes to read the same number back.

    >>> shown(4.7345742216589235), shown(2.746e-05), shown(6.0), shown([1, 0.56]), shown(None)
    ('4.7345742216589235', '2.746e-05', '6', '1, 0.56', '')
    >>> shown(0.84666, 4), shown(20900.4, 4), shown(-0.0, 4), shown(2.5e20, 4)
    ('0.8467', '20900', '0', '2.5e+20')
    """
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        nested = any(isinstance(part, list | tuple) for part in value)
        return (" | " if nested else ", ").join(shown(part, digits) for part in value)
    if isinstance(value, float):
        value = float(value) or 0.0  # turns -0.0 into 0.0
        if digits and 1 <= abs(value) < 1e16:
            digits = max(digits, len(str(int(abs(value)))))
        return f"{value:.{digits}g}" if digits else repr(value).removesuffix(".0")
    return str(value)
