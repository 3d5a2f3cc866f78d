"""Judge claims: compare what each claim expects with what the tables hold.

The verdicts on all claims of an experiment are one table, the file claims.csv. Only this module
writes and reads that file.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from toycircuits.claims.card import Card, Claim, shown
from toycircuits.claims.lookup import NoRowError, as_numbers, mean_over_models, values
from toycircuits.core.config import InputError, at_key, quoted
from toycircuits.core.json_text import read_json
from toycircuits.core.messages import short
from toycircuits.core.paths import FLOAT_FORMAT, remedy
from toycircuits.core.tables import csv_text, mean_interval, wilson

OUTCOMES = ("reproduced", "not reproduced", "not comparable")
COLUMNS = (  # of claims.csv
    *("id", "kind", "source", "statement", "published", "expected", "outcome", "measured"),
    *("models", "passing", "low", "high", "interval", "table", "value", "why"),
)
PATTERNS = {"outcome": "|".join(OUTCOMES), "models": "[0-9]+", "passing": "[0-9]*"}


def write_verdicts(path: Path, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Write `verdicts`, one from `judge` for each claim, to the file `path`."""
    pd.DataFrame(verdicts).to_csv(path, index=False, float_format=FLOAT_FORMAT)


def read_verdicts(path: Path) -> pd.DataFrame:
    """The verdicts in the file `path`, one row for each claim.

    Every cell is the text that the file holds, so that 49 does not become 49.0. A cell without a
    value is the empty text.

    Raises:
        InputError: the file is not what `write_verdicts` writes.
    """
    text = csv_text(path)
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    if (columns := tuple(map(str, table))) != COLUMNS:
        found = f"found the columns {quoted(','.join(columns))}; expected {','.join(COLUMNS)}"
        raise InputError(f"{path}: line 1: {found}{remedy(path)}")
    for name, pattern in PATTERNS.items():
        odd = table[name][~table[name].str.fullmatch(pattern)]
        if len(odd):
            found = f"found {quoted(odd.iloc[0])}; expected {pattern}"
            raise InputError(f"{path}: row {odd.index[0] + 1}: {name}: {found}{remedy(path)}")
    if table["id"].duplicated().any():
        twice = table["id"][table["id"].duplicated()].iloc[0]
        raise InputError(f"{path}: the claim {quoted(twice)} is there twice{remedy(path)}")
    return table


def read_metrics(path: Path) -> dict[str, Any]:
    """The key metrics and counts of claims in the file `path`, as the stage `judge` writes them.

    Raises:
        InputError: the file holds something else than numbers by name.
    """
    metrics = read_json(path, remedy(path))
    if not isinstance(metrics, dict) or not isinstance(metrics.get("claims", {}), dict):
        raise InputError(f"{path}: found {short(metrics)}; allowed: numbers by name{remedy(path)}")
    for name, value in [*metrics.items(), *metrics.get("claims", {}).items()]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number or value is None or value is metrics.get("claims")):
            text = f"found {short(value)}; allowed: a number or null"
            raise InputError(f"{path}: {quoted(name)}: {text}{remedy(path)}")
    return metrics


def count_outcomes(outcomes: Iterable[str]) -> dict[str, int]:
    """How often each outcome occurs, in the order of `OUTCOMES`.

    >>> count_outcomes(["not comparable", "reproduced", "not comparable"])
    {'reproduced': 1, 'not reproduced': 0, 'not comparable': 2}
    """
    counts = Counter(outcomes)
    return {outcome: counts[outcome] for outcome in OUTCOMES}


def judge_all(
    card: Card, tables: Mapping[str, pd.DataFrame], scale: str, file: Path
) -> list[dict[str, Any]]:
    """The verdicts on all claims of `card`, in its order.

    Args:
        tables: as `tables_of` returns them.
        scale: the scale that the tables were made at.
        file: the file of claims, for error messages.

    Raises:
        InputError: as for `judge`.
    """
    verdicts = []
    for claim in card.claims:
        with at_key(f"{file}: {claim.id}"):
            verdicts.append(judge(claim, tables, scale))
    return verdicts


def key_metrics(
    card: Card, tables: Mapping[str, pd.DataFrame], file: Path
) -> dict[str, float | None]:
    """Name -> mean over models with six digits, or None if no model has a value.

    Args:
        file: the file of claims, for error messages.

    Raises:
        InputError: as for `mean_over_models`.
    """
    means: dict[str, float | None] = {}
    for name, measured in card.key_metrics.items():
        with at_key(f"{file}: key_metrics.{name}"):
            mean = mean_over_models(measured, tables)
        means[name] = None if mean is None else float(f"{mean:.6g}")
    return means


def judge(claim: Claim, tables: Mapping[str, pd.DataFrame], scale: str) -> dict[str, Any]:
    """The verdict on `claim`, as one row of claims.csv.

    Raises:
        InputError: at a scale of the claim, its table or column does not exist or does not hold
            what the claim needs.
    """
    comparable = scale in claim.scales
    verdict: dict[str, Any] = {
        **{"id": claim.id, "kind": claim.kind, "source": claim.source},
        **{"statement": claim.statement, "published": shown(claim.published)},
        **{"expected": _expected_in_words(claim), "outcome": "not comparable", "measured": ""},
        **{"models": 0, "passing": None, "low": None, "high": None, "interval": ""},
        **{"table": claim.measured.table, "value": claim.measured.value, "why": ""},
    }
    try:
        holds, measurement = _compare(claim, values(claim.measured, tables))
    except InputError as error:
        if comparable and not isinstance(error, NoRowError):
            raise
        # Other settings have other seeds, steps and sizes, so that rows may be missing.
        return verdict | {"why": str(error) if comparable else ""}
    if comparable:
        verdict["outcome"] = "reproduced" if holds else "not reproduced"
        verdict["why"] = "" if holds else claim.why
    return verdict | measurement


def _compare(claim: Claim, measured: "pd.Series[Any]") -> tuple[bool, dict[str, Any]]:
    """Whether the values of the models are as expected, and the columns that describe them.

    Raises:
        InputError: the claim needs numbers, and the values are not numbers.
    """
    columns: dict[str, Any] = {"models": len(measured)}
    if claim.of == "mean":
        numbers = as_numbers(measured, "of: mean")
        holds = claim.expected.holds(float(numbers.mean(skipna=False)))
        return holds, columns | _describe(claim, numbers)
    with at_key("passes" if claim.passes else "expected"):
        condition = claim.passes or claim.expected
        passing = sum(condition.holds(value) for value in measured)
    columns["passing"] = passing
    if claim.of == "share":
        low, high = wilson(passing, len(measured))
        columns |= {"measured": f"{passing} of {len(measured)}", "low": low, "high": high}
        columns["interval"] = f"rate {shown(low, 3)} to {shown(high, 3)} (Wilson, 95%)"
        return claim.expected.holds(passing / len(measured)), columns
    return passing == len(measured), columns | _describe(claim, measured)


def _describe(claim: Claim, measured: "pd.Series[Any]") -> dict[str, Any]:
    """The columns `measured`, `interval`, `low` and `high`.

    Claims about a mean show the mean. Claims about every model show the range of their values.
    """
    if not pd.api.types.is_numeric_dtype(measured):
        distinct = {json.dumps(value, default=str): value for value in measured}
        return {"measured": "; ".join(shown(value) for value in distinct.values())}
    numbers = measured.astype(float)
    finite = numbers[numbers.abs() < math.inf]  # no value: for example, a step never reached
    if finite.empty:
        return {"measured": "no value"}
    mean, least, most = (
        _rounded(float(value), claim) for value in (finite.mean(), finite.min(), finite.max())
    )
    lacking = len(measured) - len(finite)
    note = f"; no value in {lacking} of {len(measured)} models" if lacking else ""
    if least == most:
        return {"measured": least + note}
    low, high = mean_interval(finite)
    interval, models = f"{shown(low, 4)} to {shown(high, 4)} (t, 95%)", f"{least} to {most}"
    if claim.of == "mean":
        texts = {"measured": mean + note, "interval": f"mean {interval}; models from {models}"}
    else:
        texts = {"measured": models + note, "interval": f"mean {mean}, {interval}"}
    return {**texts, "low": low, "high": high}


def _rounded(value: float, claim: Claim) -> str:
    """`value` with few digits, but enough of them that it is as expected exactly if `value` is."""
    fewest = 12 if claim.kind == "exact" else 4
    holds = claim.expected.holds(value)
    texts = (shown(value, digits) for digits in range(fewest, 17))
    return next((text for text in texts if claim.expected.holds(float(text)) == holds), repr(value))


def _expected_in_words(claim: Claim) -> str:
    """What the claim expects, in words."""
    match claim.of:
        case "share":
            return f"share of models with {claim.passes}: {claim.expected}"
        case "mean":
            return f"mean {claim.expected}"
        case _:
            return str(claim.expected)
