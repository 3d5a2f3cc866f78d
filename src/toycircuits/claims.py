"""Claims as data: what was published, or is said by us, against the tables that were computed.

Each experiment has a file `claims/<experiment>.yaml`. A claim names cells of a table, what is
expected of them, and at which scale they can be compared; nothing in the file is measured. `judge`
looks the cells up and says what became of each claim.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import pandas as pd
from pydantic import Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from toycircuits.config import InputError, Settings
from toycircuits.tables import MODEL, mean_interval, wilson

Scalar: TypeAlias = bool | int | float | str
Rows: TypeAlias = dict[str, Scalar | list[Scalar]]
Reduction = Literal["max", "min", "mean", "sum", "count", "list"]
OUTCOMES = ("reproduced", "not reproduced", "not comparable")


class NoRowError(InputError):
    """A table has no row that a claim is about, as under settings that somebody changed."""


class Measured(Settings):
    """One value for each model: where it stands in the tables of an experiment.

    Attributes:
        table: its name, over all runs (as `training` or `ablations`), or with `summary/` before it
            one that compares runs.
        where: column -> value of the rows that are meant, or several; "first" and "last" of the
            column `step` are each model's own.
        value: a column, or an expression of columns as `pandas.DataFrame.eval` reads it.
        reduce: what makes one value of several rows of a model.
        minus: what is subtracted: rows that differ from `where` in these columns.
        over: what it is divided by, likewise.
    """

    table: str
    where: Rows = Field(default={})
    value: str
    reduce: Reduction | None = None
    minus: Rows | None = None
    over: Rows | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.minus is not None and self.over is not None:
            raise ValueError("minus and over: give one of them")
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
        near = given & {"within", "relative", "factor"}
        if not given - near:
            raise ValueError("nothing that could fail")
        if len(near) > 1 or (near and "equal" not in given):
            raise ValueError("within, relative, factor: give one of them, beside equal")
        return self

    def holds(self, value: Any) -> bool:
        """Whether `value` is as it should be; what is not a number is not."""
        if isinstance(value, float) and math.isnan(value):
            return False
        pairs = self.between or []
        pairs = [pairs] if isinstance(pairs, tuple) else pairs
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
            same_length = isinstance(value, list) and len(value) == len(target)
            pairs = zip(value, target, strict=True) if same_length else ()
            return same_length and all(abs(one - other) <= self.within for one, other in pairs)
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
        if self.between:
            pairs = [self.between] if isinstance(self.between, tuple) else self.between
            parts.append(" or ".join(f"{shown(low)} to {shown(high)}" for low, high in pairs))
        signs = {"at_least": "≥", "at_most": "≤", "above": ">", "below": "<"}
        bounds = [(sign, getattr(self, name)) for name, sign in signs.items()]
        parts += [f"{sign} {shown(bound)}" for sign, bound in bounds if bound is not None]
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
    scales: list[str] = Field(default=["paper"])
    measured: Measured
    expected: Condition
    of: Literal["every", "mean", "share"] = "every"
    passes: Condition | None = None
    why: str = ""

    @model_validator(mode="after")
    def _share_of_what(self) -> Self:
        if (self.of == "share") != (self.passes is not None):
            raise ValueError("passes: goes with `of: share`, and with nothing else")
        return self


class Card(Settings):
    """What a file of claims says of its experiment.

    Attributes:
        title: heading on the page.
        question: one sentence.
        method: some lines.
        headline: name -> the few numbers that `dvc metrics show` prints, means over models.
        claims: all of them.
    """

    title: str
    question: str
    method: list[str]
    headline: dict[str, Measured]
    claims: list[Claim]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
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
        return Card.parse(YAML(typ="safe").load(path.read_text()), str(path))
    except YAMLError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def values(measured: Measured, tables: Mapping[str, pd.DataFrame]) -> "pd.Series[Any]":
    """One value for each model, under its run, variant and seed.

    Raises:
        NoRowError: the table has no such row.
        InputError: there is no such table or column, or a model has several rows.
    """
    result = _look_up(measured, measured.where, tables)
    for change in (measured.minus, measured.over):
        if change is not None:
            other = _beside(result, _look_up(measured, measured.where | change, tables), change)
            result = result / other if measured.over is not None else result - other
    return result


def _beside(result: "pd.Series[Any]", other: "pd.Series[Any]", change: Rows) -> "pd.Series[Any]":
    """Values of `other` for the models of `result`: the same but for what `change` names.

    Raises:
        InputError: several models are meant.
    """
    same = [name for name in result.index.names if name not in change]

    def places(values: "pd.Series[Any]") -> list[tuple[Any, ...]]:
        levels = [values.index.get_level_values(str(name)) for name in same]
        return list(zip(*levels, strict=True)) if levels else [()] * len(values)

    known = dict(zip(places(other), other, strict=True))
    if len(known) < len(other):
        raise InputError("minus, over: several models are meant; name their run, variant and seed")
    return pd.Series([known.get(place, math.nan) for place in places(result)], result.index)


def _look_up(
    measured: Measured, where: Rows, tables: Mapping[str, pd.DataFrame]
) -> "pd.Series[Any]":
    if measured.table not in tables:
        raise InputError(f"table: found {measured.table!r}; there are: {', '.join(sorted(tables))}")
    table = tables[measured.table]
    model = [name for name in MODEL if name in table]
    for column, wanted in where.items():
        if column not in table:
            raise InputError(f"where: found {column!r}; there are: {', '.join(map(str, table))}")
        if column == "step" and wanted in ("first", "last"):
            steps = table.groupby(model, dropna=False)["step"]
            ends = steps.transform("min") if wanted == "first" else steps.transform("max")
            table = table[table["step"] == ends]
        else:
            table = table[table[column].isin(wanted if isinstance(wanted, list) else [wanted])]
    if table.empty:
        raise NoRowError(f"where: no row of {measured.table} with {json.dumps(where)}")
    try:
        result = pd.Series(table.eval(measured.value, engine="python"), table.index)
    except (pd.errors.UndefinedVariableError, SyntaxError, KeyError, TypeError) as error:
        columns = ", ".join(map(str, table))
        raise InputError(f"value: {measured.value!r}: {error}; there are: {columns}") from None
    by_model = result.groupby([table[name] for name in model], dropna=False, sort=False)
    if measured.reduce:
        return pd.Series(by_model.agg(list if measured.reduce == "list" else measured.reduce))
    if (by_model.size() > 1).any():
        text = f"{by_model.size().max()} rows of one model with {json.dumps(where)}"
        raise InputError(f"where: {text}; name one, or say how to reduce them")
    return pd.Series(by_model.first())


def judge(claim: Claim, tables: Mapping[str, pd.DataFrame], scale: str) -> dict[str, Any]:
    """What became of `claim`, a row of the table of claims.

    Raises:
        InputError: at a scale of the claim, there is no table or column as it names.
    """
    comparable = scale in claim.scales
    row: dict[str, Any] = {
        **{"id": claim.id, "kind": claim.kind, "source": claim.source},
        **{"statement": claim.statement, "published": shown(claim.published)},
        **{"expected": _expectation(claim), "outcome": "not comparable", "measured": ""},
        **{"models": 0, "passing": None, "low": None, "high": None, "interval": ""},
        **{"table": claim.measured.table, "value": claim.measured.value, "why": ""},
    }
    try:
        found = values(claim.measured, tables)
    except InputError as error:
        if comparable and not isinstance(error, NoRowError):
            raise
        # Other settings have other seeds, steps and sizes.
        return row | {"why": str(error) if comparable else ""}
    holds, told = _weigh(claim, found)
    if comparable:
        row["outcome"] = "reproduced" if holds else "not reproduced"
        row["why"] = "" if holds else claim.why
    return row | told


def _weigh(claim: Claim, found: "pd.Series[Any]") -> tuple[bool, dict[str, Any]]:
    """Whether the values of the models are as expected, and how they are told."""
    condition = claim.passes or claim.expected
    passing = sum(condition.holds(value) for value in found)
    told: dict[str, Any] = {"models": len(found), "passing": passing}
    if claim.of == "share":
        low, high = wilson(passing, len(found))
        told |= {"measured": f"{passing} of {len(found)}", "low": low, "high": high}
        told["interval"] = f"rate {shown(low, 3)} to {shown(high, 3)} (Wilson, 95%)"
        return claim.expected.holds(passing / len(found)), told
    if not pd.api.types.is_numeric_dtype(found):
        distinct = {json.dumps(value, default=str): value for value in found}
        told["measured"] = "; ".join(shown(value) for value in distinct.values())
        return passing == len(found), told
    digits = 12 if claim.kind == "exact" else 4
    known = found[found.abs() < math.inf]  # a model may have no value, as a step never reached
    told["measured"] = shown(float(known.mean()), digits) if len(known) else ""
    if len(known) > 1:
        low, high = mean_interval(known)
        told |= {"low": low, "high": high}
        least, most = (shown(float(end), 4) for end in (known.min(), known.max()))
        told["interval"] = f"mean {shown(low, 4)} to {shown(high, 4)} (t, 95%)"
        told["interval"] += f"; models from {least} to {most}"
    mean = float(found.mean(skipna=False))
    holds = claim.expected.holds(mean) if claim.of == "mean" else None
    return passing == len(found) if holds is None else holds, told


def _expectation(claim: Claim) -> str:
    """What is expected, in words."""
    match claim.of:
        case "share":
            return f"share of models with {claim.passes}: {claim.expected}"
        case "mean":
            return f"mean {claim.expected}"
        case _:
            return str(claim.expected)


def shown(value: Any, digits: int | None = None) -> str:
    """A value as people write it, with as many digits as it takes to read it back.

    >>> shown(4.7345742216589235), shown(2.746e-05), shown(6.0), shown([1, 0.56]), shown(None)
    ('4.7345742216589235', '2.746e-05', '6', '1, 0.56', '')
    """
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        nested = any(isinstance(part, list | tuple) for part in value)
        return (" | " if nested else ", ").join(shown(part, digits) for part in value)
    if isinstance(value, float):
        return f"{value:.{digits}g}" if digits else repr(float(value)).removesuffix(".0")
    return str(value)
