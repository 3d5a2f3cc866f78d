"""Judge claims: compare what each claim expects with what the tables hold.

The verdicts on all claims of an experiment are one table, the file claims.csv. Only this module
writes and reads that file.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from toycircuits.claims.card import Claim, shown
from toycircuits.claims.lookup import NoRowError, as_numbers, values
from toycircuits.core.config import InputError, at_key
from toycircuits.core.paths import FLOAT_FORMAT
from toycircuits.core.tables import mean_interval, wilson

OUTCOMES = ("reproduced", "not reproduced", "not comparable")


def write_verdicts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the verdicts `rows`, as `judge` returns them, to the file `path`."""
    pd.DataFrame(rows).to_csv(path, index=False, float_format=FLOAT_FORMAT)


def read_verdicts(path: Path) -> pd.DataFrame:
    """The verdicts in the file `path`, one row a claim.

    Every cell is the text that the file holds, so that 49 does not become 49.0. A cell without a
    value is the empty text.

    Raises:
        InputError: the file is not a table.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own, and that of bytes that are not UTF-8
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def count_outcomes(outcomes: Iterable[str]) -> dict[str, int]:
    """How many of `outcomes` there are of each kind, in the order of `OUTCOMES`."""
    counts = Counter(outcomes)
    return {outcome: counts[outcome] for outcome in OUTCOMES}


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
        holds, told = _weigh(claim, values(claim.measured, tables))
    except InputError as error:
        if comparable and not isinstance(error, NoRowError):
            raise
        # Other settings have other seeds, steps and sizes.
        return row | {"why": str(error) if comparable else ""}
    if comparable:
        row["outcome"] = "reproduced" if holds else "not reproduced"
        row["why"] = "" if holds else claim.why
    return row | told


def _weigh(claim: Claim, found: "pd.Series[Any]") -> tuple[bool, dict[str, Any]]:
    """Whether the values of the models are as expected, and how they are told.

    Raises:
        InputError: of values that are no numbers, something is asked that only numbers can be.
    """
    told: dict[str, Any] = {"models": len(found)}
    if claim.of == "mean":
        numbers = as_numbers(found, "of: mean")
        holds = claim.expected.holds(float(numbers.mean(skipna=False)))
        return holds, told | _told(claim, numbers)
    with at_key("passes" if claim.passes else "expected"):
        condition = claim.passes or claim.expected
        passing = sum(condition.holds(value) for value in found)
    told["passing"] = passing
    if claim.of == "share":
        low, high = wilson(passing, len(found))
        told |= {"measured": f"{passing} of {len(found)}", "low": low, "high": high}
        told["interval"] = f"rate {shown(low, 3)} to {shown(high, 3)} (Wilson, 95%)"
        return claim.expected.holds(passing / len(found)), told
    return passing == len(found), told | _told(claim, found)


def _told(claim: Claim, found: "pd.Series[Any]") -> dict[str, Any]:
    """What was measured, in words that agree with the outcome.

    That of a mean is the mean; that of every model is the range of their values.
    """
    if not pd.api.types.is_numeric_dtype(found):
        distinct = {json.dumps(value, default=str): value for value in found}
        return {"measured": "; ".join(shown(value) for value in distinct.values())}
    numbers = found.astype(float)
    known = numbers[numbers.abs() < math.inf]  # a model may have no value, as a step never reached
    if known.empty:
        return {"measured": "no value"}
    mean, least, most = (
        _telling(float(value), claim) for value in (known.mean(), known.min(), known.max())
    )
    lacking = len(found) - len(known)
    without = f"; no value in {lacking} of {len(found)} models" if lacking else ""
    if least == most:
        return {"measured": least + without}
    low, high = mean_interval(known)
    interval, models = f"{shown(low, 4)} to {shown(high, 4)} (t, 95%)", f"{least} to {most}"
    if claim.of == "mean":
        told = {"measured": mean, "interval": f"mean {interval}; models from {models}"}
    else:
        told = {"measured": models, "interval": f"mean {mean}, {interval}"}
    return {**told, "measured": told["measured"] + without, "low": low, "high": high}


def _telling(value: float, claim: Claim) -> str:
    """`value` with as many digits as it takes to see whether it is as expected."""
    digits = 12 if claim.kind == "exact" else 4
    holds = claim.expected.holds(value)
    texts = (shown(value, number) for number in range(digits, 17))
    return next((text for text in texts if claim.expected.holds(float(text)) == holds), repr(value))


def _expectation(claim: Claim) -> str:
    """What is expected, in words."""
    match claim.of:
        case "share":
            return f"share of models with {claim.passes}: {claim.expected}"
        case "mean":
            return f"mean {claim.expected}"
        case _:
            return str(claim.expected)
