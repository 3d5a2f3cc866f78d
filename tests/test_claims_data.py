"""The claims of the project: each can be looked up, and each can fail."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from toycircuits.claims import lookup
from toycircuits.claims.card import Claim, Measured, read_card
from toycircuits.claims.lookup import values
from toycircuits.claims.verdict import judge, read_verdicts
from toycircuits.core import report_paths
from toycircuits.core.config import read_params, runs_of
from toycircuits.core.tables import MODEL

ROOT = Path(__file__).resolve().parents[1]
PARAMS = read_params(ROOT / "params.yaml")
SCALE = PARAMS["scale"]
CARDS = {path.stem: read_card(path) for path in sorted(ROOT.glob("claims/*.yaml"))}
CLAIMS = [(name, claim) for name, card in CARDS.items() for claim in card.claims]
FACTORS = (0.0, 0.1, 0.5, 2.0, 10.0)  # that measured values are multiplied by
# At another scale than that of a claim, values may differ by more: trainings there are shorter.
FACTORS_OF_ANOTHER_SCALE = (*FACTORS, 100.0)


@cache
def tables_of(experiment: str) -> dict[str, pd.DataFrame]:
    return lookup.tables_of(ROOT / "reports" / experiment, runs_of(PARAMS, experiment))


def without_minus_and_over(measured: Measured, **changes: Any) -> Measured:
    """The same cells, from which nothing is subtracted and which are divided by nothing."""
    return measured.model_copy(update={"minus": None, "over": None, **changes})


def seen_anywhere(measured: Measured, tables: Mapping[str, pd.DataFrame]) -> tuple[float, float]:
    """Least and greatest measured value of all models and steps; of a count, 0 and all rows."""
    if measured.reduce in ("count", "sum"):
        return 0.0, float(values(without_minus_and_over(measured, reduce="count"), tables).max())
    where = {key: value for key, value in measured.where.items() if key not in (*MODEL, "step")}
    lists = values(without_minus_and_over(measured, where=where, reduce="list"), tables)
    seen = pd.Series([float(part) for parts in lists for part in parts])
    return float(seen.min()), float(seen.max())


def plausible(least: float, most: float, is_count: bool) -> tuple[float, float]:
    """Bounds on plausible values: they keep the sign, and shares stay shares."""
    low = 0.0 if least >= 0 else -math.inf
    if is_count:
        return low, most
    return low, 1.0 if least >= 0 and most <= 1 else 0.0 if most <= 0 and least < 0 else math.inf


def with_steps_of_the_tables(experiment: str, claim: Claim) -> Claim:
    """The claim, its steps moved to the same share of the training at the scale in git.

    A step of the paper scale may not exist in the shorter trainings of the quick scale.
    """
    if SCALE in claim.scales:
        return claim
    lengths = [PARAMS[s][experiment]["train"]["length"] for s in (SCALE, claim.scales[0])]

    def move(rows: Any) -> Any:
        if rows is None or not isinstance(rows.get("step"), int):
            return rows
        distance = (steps - rows["step"] * lengths[0] / lengths[1]).abs()
        return rows | {"step": int(steps[distance.idxmin()])}

    steps = tables_of(experiment)[claim.measured.table].get("step", pd.Series(dtype=float))
    changes = {name: move(getattr(claim.measured, name)) for name in ("where", "minus", "over")}
    return claim.model_copy(update={"measured": claim.measured.model_copy(update=changes)})


def wrong_cells(
    measured: Measured, tables: Mapping[str, pd.DataFrame], factors: Sequence[float]
) -> "Iterator[pd.Series[Any]]":
    """Other plausible values of the measured cells, one for each model."""
    cells = values(without_minus_and_over(measured), tables)
    if not pd.api.types.is_numeric_dtype(cells):
        yield cells.map(lambda value: value[::-1] if len(set(value)) > 1 else [*value, *value])
        yield cells.map(lambda value: [2 * part for part in value])
        return
    numbers = cells.astype(float)
    known = numbers[numbers.abs() < math.inf]
    if known.empty:
        pytest.skip("no model has a value in the tables that are here")
    seen = [*seen_anywhere(measured, tables), float(known.min()), float(known.max())]
    low, high = plausible(min(seen), max(seen), measured.reduce in ("count", "sum"))
    ends = [known * 0 + end for end in (*seen, low, high, 1.0) if math.isfinite(end)]
    for changed in [*(known * factor for factor in factors), -known, *ends]:
        if changed.between(low, high).all():
            # A model without a value fails every claim, so it gets one: the others decide.
            yield changed.reindex(numbers.index).fillna(float(changed.mean()))


def can_fail(claim: Claim, tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether a plausible value of its cells makes the claim fail."""
    look_up = lookup._look_up
    factors = FACTORS if SCALE in claim.scales else FACTORS_OF_ANOTHER_SCALE
    for cells in list(wrong_cells(claim.measured, tables, factors)):

        def altered(
            measured: Measured, where: Any, tables: Any, cells: "pd.Series[Any]" = cells
        ) -> "pd.Series[Any]":
            """Change the measured cells, but not those that are subtracted or divided by."""
            return cells if where == measured.where else look_up(measured, where, tables)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lookup, "_look_up", altered)
            if judge(claim, tables, claim.scales[0])["outcome"] == "not reproduced":
                return True
    return False


@pytest.mark.parametrize(
    ("experiment", "claim"), CLAIMS, ids=lambda value: getattr(value, "id", value)
)
def test_every_claim_can_fail(experiment: str, claim: Claim) -> None:
    """The real cells give a verdict, and some other plausible cells make the claim fail."""
    tables, moved = tables_of(experiment), with_steps_of_the_tables(experiment, claim)
    assert judge(moved, tables, claim.scales[0])["outcome"] != "not comparable"
    assert can_fail(moved, tables)


MADE_UP = {
    "metrics": pd.DataFrame(
        {
            **{"run": "a", "seed": [0, 1, 0, 1], "metric": ["x", "x", "y", "y"]},
            **{"loss": [3.0, 5.0, 4.0, 1.0], "accuracy": [0.9, 0.95, 0.3, 0.2]},
        }
    ),
}
X = {"table": "metrics", "where": {"metric": "x"}}
LISTS = {"table": "metrics", "value": "loss", "reduce": "list"}


@pytest.mark.parametrize(
    ("measured", "expected", "fails"),
    [
        (X | {"value": "accuracy"}, {"at_least": 0.5}, True),
        (X | {"value": "accuracy"}, {"at_least": 0}, False),
        (X | {"value": "accuracy"}, {"at_most": 1}, False),
        (X | {"value": "accuracy"}, {"between": [0, 1]}, False),
        (X | {"value": "loss"}, {"at_least": 1}, True),
        (X | {"value": "loss"}, {"at_least": 0}, False),
        (X | {"value": "loss"}, {"at_most": 1e6}, False),
        (X | {"value": "-loss"}, {"below": 0.1}, False),
        (X | {"value": "accuracy", "minus": {"metric": "y"}}, {"above": 0}, True),
        (X | {"value": "accuracy", "minus": {"metric": "y"}}, {"at_least": -1}, False),
        (X | {"value": "loss", "over": {"metric": "y"}}, {"above": 0.5}, True),
        (X | {"value": "loss", "over": {"metric": "y"}}, {"at_least": 0}, False),
        ({"table": "metrics", "value": "accuracy > 0.5", "reduce": "sum"}, {"equal": 1}, True),
        ({"table": "metrics", "value": "accuracy > 0.5", "reduce": "sum"}, {"at_most": 2}, False),
        (LISTS, {"equal": [3, 4], "within": 0.5}, True),
        (LISTS, {"equal": [3, 4], "within": 9.0}, False),
    ],
)
def test_claims_that_cannot_fail_are_detected(
    measured: dict[str, Any], expected: dict[str, Any], fails: bool
) -> None:
    fields = {"id": "x", "statement": "s", "source": "o", "kind": "statistical"}
    claim = Claim.parse(fields | {"measured": measured, "expected": expected}, "claim")
    assert can_fail(claim, MADE_UP) == fails
    share = {"of": "share", "passes": expected, "expected": {"above": 0.5}}
    assert can_fail(Claim.parse(fields | {"measured": measured} | share, "c"), MADE_UP) == fails


def test_verdicts_in_git_are_those_of_the_claims_as_they_are_now() -> None:
    for experiment, card in CARDS.items():
        written = read_verdicts(ROOT / report_paths.claims_table(experiment)).set_index("id")
        assert [*written.index] == [claim.id for claim in card.claims]
        for claim in card.claims:
            row = judge(claim, tables_of(experiment), SCALE)
            outcome = row["outcome"]
            assert outcome == written.loc[claim.id, "outcome"]
            assert row["measured"] == written.loc[claim.id, "measured"]
            assert (outcome == "not comparable") == (SCALE not in claim.scales)


def test_there_are_enough_claims_and_failures_have_reasons() -> None:
    """Exact claims hold at every scale. At the paper scale, other claims that fail say why."""
    assert len(CLAIMS) >= 60
    for experiment in CARDS:
        verdicts = read_verdicts(ROOT / report_paths.claims_table(experiment))
        failed = verdicts[verdicts["outcome"] == "not reproduced"]
        assert "exact" not in set(failed["kind"])
        if SCALE == "paper":
            assert failed[failed["why"] == ""]["id"].tolist() == []
