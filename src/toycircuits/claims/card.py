"""Claims as data: what was published, or is said by us, and what is expected of the tables.

Each experiment has a file `claims/<experiment>.yaml`. A claim names cells of a table, what is
expected of them, and at which scale they can be compared; nothing in the file is measured.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from pydantic import Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from toycircuits.core.config import InputError, Settings, check_keys

Scalar: TypeAlias = bool | int | float | str
Rows: TypeAlias = dict[str, Scalar | list[Scalar]]
Reduction = Literal["max", "min", "mean", "sum", "count", "list"]
NUMBER = (bool, int, float, np.bool_, np.number)  # what can be compared with a bound
NEAR = ("within", "relative", "factor")
BOUNDS = ("at_least", "at_most", "above", "below")


def short(value: Any) -> str:
    """`value` as a message has it."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_finite(value: Any) -> bool:
    """Whether every number in `value` is one, and none is infinite."""
    try:
        json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        return False
    return True


class Measured(Settings):
    """One value for each model: where it stands in the tables of an experiment.

    Attributes:
        table: its name, over all runs (as `training` or `ablations`), or with `summary/` before it
            one that compares runs.
        where: column -> value of the rows that are meant, or several; "first" and "last" of the
            column `step` are each model's own, of the rows that all other columns leave.
        value: a column, or an expression of columns as `pandas.DataFrame.eval` reads it, with one
            value a row.
        reduce: what makes one value of several rows of a model.
        minus: what is subtracted: rows that differ from `where` in these columns.
        over: what it is divided by, likewise.
    """

    table: str
    where: Rows = Field(default={})
    value: str = Field(min_length=1)
    reduce: Reduction | None = None
    minus: Rows | None = None
    over: Rows | None = None

    @model_validator(mode="after")
    def _of_other_rows(self) -> Self:
        if self.minus is not None and self.over is not None:
            raise ValueError("minus and over: give one of them")
        for name in ("minus", "over"):
            change = getattr(self, name)
            if change is not None and self.where | change == self.where:
                found = f"{name}: found {json.dumps(change)}"
                raise ValueError(f"{found}; allowed: rows that differ from where")
        return self


class Condition(Settings):
    """What is asked of a value; all that is given must hold.

    Attributes:
        equal: the value or, in the end, a list of them.
        within: greatest distance of a number from `equal`; of every number, where it is a list.
        relative: the same as a share of `equal`.
        factor: how many times smaller or greater than `equal` it may be.
        between: lowest and highest value; or several such pairs, of which one must hold it.
        at_least: lowest value.
        at_most: highest value.
        above: what it exceeds.
        below: what it stays under.
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
    def _says_something(self) -> Self:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        near = given & {*NEAR}
        if not given - near:
            raise ValueError("nothing that could fail")
        if len(near) > 1 or (near and "equal" not in given):
            raise ValueError("within, relative, factor: give one of them, beside equal")
        if self.between == []:
            raise ValueError("between: found []; allowed: two numbers, or a list of such pairs")
        if wrong := [list(pair) for pair in self._pairs() if pair[0] > pair[1]]:
            raise ValueError(f"between: found {short(wrong[0])}; allowed: the lower end first")
        self._check_target(next(iter(near), None))
        if self._needs_number() and not any(map(self.holds, self.samples())):
            raise ValueError(f"found {self}, which no number is")
        return self

    def _check_target(self, near: str | None) -> None:
        """Raise a `ValueError` where nothing can be `equal`, or be `near` it as asked."""
        target: Any = self.equal
        if not _is_finite(target) or target == []:
            found = f"equal: found {short(target)}"
            raise ValueError(f"{found}; allowed: text, a finite number, or a list of some")
        if isinstance(target, str | list) and (self._pairs() or self._bounds()):
            raise ValueError(f"equal: found {short(target)} beside bounds; allowed is a number")
        if near is None:
            return
        parts = target if near == "within" and isinstance(target, list) else [target]
        if (
            not all(type(part) in (int, float) for part in parts)
            or (near == "factor" and target <= 0)
            or (near == "relative" and target == 0)
        ):
            allowed = {"within": ", or several", "factor": " above 0", "relative": " other than 0"}
            found = f"{near}: found it beside equal: {short(target)}"
            raise ValueError(f"{found}; allowed there: a number{allowed[near]}")

    def _pairs(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each range of `between`."""
        return [self.between] if isinstance(self.between, tuple) else self.between or []

    def _bounds(self) -> dict[str, float]:
        """The bounds that are given."""
        told = {name: getattr(self, name) for name in BOUNDS}
        return {name: bound for name, bound in told.items() if bound is not None}

    def _needs_number(self) -> str:
        """A key that only a number can be asked for; "" if there is none."""
        keys = [key for key in (*NEAR, "between", *BOUNDS) if getattr(self, key) is not None]
        return "" if isinstance(self.equal, list) or not keys else keys[0]

    def samples(self, low: float = -math.inf, high: float = math.inf) -> list[float]:
        """Numbers from `low` to `high`: one holds if any does, and one does not if any does not.

        >>> Condition(above=0.0, at_most=2.0).samples()
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
        middles = [(one + other) / 2 for one, other in itertools.pairwise(points)]
        outside = [points[0] - 1, points[-1] + 1]
        return sorted([*points, *middles, *(one for one in outside if low <= one <= high)])

    def holds(self, value: Any) -> bool:
        """Whether `value` is as it should be; none, and what is not finite, is not.

        Raises:
            InputError: only a number can be so, and `value` is none.
        """
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return False
        if (key := self._needs_number()) and not isinstance(value, NUMBER):
            raise InputError(f"{key}: found {short(value)}; allowed is a number")
        pairs = self._pairs()
        return (
            (self.equal is None or self._is_near(value))
            and (not pairs or any(low <= value <= high for low, high in pairs))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _is_near(self, value: Any) -> bool:
        target: Any = self.equal
        if self.within is not None and isinstance(target, list):
            if not isinstance(value, list) or len(value) != len(target):
                return False
            if not all(isinstance(part, NUMBER) for part in value):
                raise InputError(f"within: found {short(value)}; allowed are numbers")
            pairs = zip(value, target, strict=True)
            return all(abs(one - other) <= self.within for one, other in pairs)
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
            told = [t.format(shown(getattr(self, n))) for n, t in near.items() if getattr(self, n)]
            parts.append(" ".join([shown(self.equal), *told]))
        if pairs := self._pairs():
            parts.append(" or ".join(f"{shown(low)} to {shown(high)}" for low, high in pairs))
        signs = {"at_least": "≥", "at_most": "≤", "above": ">", "below": "<"}
        parts += [f"{signs[name]} {shown(bound)}" for name, bound in self._bounds().items()]
        return " and ".join(parts)


class Claim(Settings):
    """A statement that can fail.

    Attributes:
        id: name for good, unique in its file.
        statement: one sentence.
        source: who says so: the original study, a later one, or this project.
        kind: exact (the same digits), statistical (true of models drawn at random), or qualitative.
        published: what stands there, if it is a number or several; shown beside what is measured.
        scales: at which the settings are those of the statement; elsewhere it is not comparable.
        measured: where the values stand, one a model.
        expected: asked of every model's value, of their mean, or of the share that passes.
        of: which of these.
        passes: what makes a model pass, for `of: share`.
        why: found out about a claim that fails: why it does, and which run or table shows it.
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
    def _share_of_what(self) -> Self:
        if (self.of == "share") != (self.passes is not None):
            raise ValueError("passes: goes with `of: share`, and with nothing else")
        if self.of != "every":
            ends = (0.0, 1.0) if self.of == "share" else (-math.inf, math.inf)
            found = {self.expected.holds(number) for number in self.expected.samples(*ends)}
            if len(found) == 1:
                which = "every" if True in found else "no"
                raise ValueError(f"expected: found {self.expected}, which {which} {self.of} is")
        return self


class Card(Settings):
    """What a file of claims says of its experiment.

    Attributes:
        title: heading on the page.
        question: one sentence.
        method: some lines.
        key_metrics: name -> the few numbers that `dvc metrics show` prints, means over models.
        claims: all of them.
    """

    title: str
    question: str
    method: list[str]
    key_metrics: dict[str, Measured]
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if "claims" in self.key_metrics:
            raise ValueError("key_metrics: found the name claims, which their outcomes have")
        names = [claim.id for claim in self.claims]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"claims of the same id: {', '.join(sorted(twice))}")
        return self


def read_card(path: Path) -> Card:
    """What stands in the file of claims at `path`.

    Raises:
        InputError: one line with file, key, what was found and what is allowed.
    """
    try:
        read = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {error}; allowed is text in UTF-8") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    check_keys(read, str(path))
    return Card.parse(read, str(path))


def shown(value: Any, digits: int | None = None) -> str:
    """A value as people write it.

    Args:
        digits: how many a number has, but for those before its point, which are never left out; by
            default as many as it takes to read it back.

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
        value = float(value) or 0.0  # there is a negative zero
        if digits and 1 <= abs(value) < 1e16:
            digits = max(digits, len(str(int(abs(value)))))
        return f"{value:.{digits}g}" if digits else repr(value).removesuffix(".0")
    return str(value)
