"""The claims that the project makes: each can be looked up, and each can fail."""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from toycircuits.claims import lookup
from toycircuits.claims.card import Claim, Measured, read_card
from toycircuits.claims.lookup import values
from toycircuits.claims.verdict import judge
from toycircuits.core.config import read_params
from toycircuits.core.tables import MODEL

ROOT = Path(__file__).resolve().parents[1]
SCALE = read_params(ROOT / "params.yaml")["scale"]
CARDS = {path.stem: read_card(path) for path in sorted(ROOT.glob("claims/*.yaml"))}
CLAIMS = [(name, claim) for name, card in CARDS.items() for claim in card.claims]
SCALED = (0.0, 0.1, 0.5, 2.0, 10.0)  # times what was measured


@cache
def tables_of(experiment: str) -> dict[str, pd.DataFrame]:
    return lookup.tables_of(ROOT / "reports" / experiment)


def without_others(measured: Measured, **changes: Any) -> Measured:
    """The cells alone, whatever is subtracted from them or they are divided by."""
    return measured.model_copy(update={"minus": None, "over": None, **changes})


def seen_anywhere(measured: Measured, tables: Mapping[str, pd.DataFrame]) -> tuple[float, float]:
    """Least and greatest of what is measured in all models, at all steps; a count's ends."""
    if measured.reduce in ("count", "sum"):
        return 0.0, float(values(without_others(measured, reduce="count"), tables).max())
    where = {key: value for key, value in measured.where.items() if key not in (*MODEL, "step")}
    lists = values(without_others(measured, where=where, reduce="list"), tables)
    seen = pd.Series([float(part) for parts in lists for part in parts])
    return float(seen.min()), float(seen.max())


def plausible(least: float, most: float, is_count: bool) -> tuple[float, float]:
    """What has been between `least` and `most` may also be: with this sign, or as a share."""
    low = 0.0 if least >= 0 else -math.inf
    if is_count:
        return low, most
    return low, 1.0 if least >= 0 and most <= 1 else 0.0 if most <= 0 and least < 0 else math.inf


def wrong_cells(
    measured: Measured, tables: Mapping[str, pd.DataFrame]
) -> "Iterator[pd.Series[Any]]":
    """What the cells that are measured could as well have held, for each model."""
    cells = values(without_others(measured), tables)
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
    for changed in [*(known * factor for factor in SCALED), -known, *ends]:
        if changed.between(low, high).all():
            # A model without a value fails any claim: it gets one, as it would tell nothing.
            yield changed.reindex(numbers.index).fillna(float(changed.mean()))


def can_fail(claim: Claim, tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether a plausible value of its cells makes the claim fail."""
    look_up = lookup._look_up
    for cells in list(wrong_cells(claim.measured, tables)):

        def altered(
            measured: Measured, where: Any, tables: Any, cells: "pd.Series[Any]" = cells
        ) -> "pd.Series[Any]":
            """What is measured is altered, what it is compared with is as it is."""
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
    """With its cells as they are, it is judged; with plausible others in them, it does not hold."""
    tables = tables_of(experiment)
    assert judge(claim, tables, claim.scales[0])["outcome"] != "not comparable"
    assert can_fail(claim, tables)


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
def test_what_cannot_fail_is_found_out(
    measured: dict[str, Any], expected: dict[str, Any], fails: bool
) -> None:
    fields = {"id": "x", "statement": "s", "source": "o", "kind": "statistical"}
    claim = Claim.parse(fields | {"measured": measured, "expected": expected}, "claim")
    assert can_fail(claim, MADE_UP) == fails
    share = {"of": "share", "passes": expected, "expected": {"above": 0.5}}
    assert can_fail(Claim.parse(fields | {"measured": measured} | share, "c"), MADE_UP) == fails


def test_results_in_git_are_judged_as_the_claims_say_now() -> None:
    for experiment, card in CARDS.items():
        file = ROOT / f"reports/{experiment}/claims.csv"
        written = pd.read_csv(file, dtype=str, keep_default_na=False).set_index("id")
        assert [*written.index] == [claim.id for claim in card.claims]
        for claim in card.claims:
            row = judge(claim, tables_of(experiment), SCALE)
            outcome = row["outcome"]
            assert outcome == written.loc[claim.id, "outcome"]
            assert row["measured"] == written.loc[claim.id, "measured"]
            assert (outcome == "not comparable") == (SCALE not in claim.scales)


def test_there_are_claims_enough_and_none_fails_without_a_reason() -> None:
    """At the paper scale: exact ones hold, and others that do not say why."""
    assert len(CLAIMS) >= 60
    for experiment in CARDS:
        table = pd.read_csv(ROOT / f"reports/{experiment}/claims.csv", keep_default_na=False)
        failed = table[table["outcome"] == "not reproduced"]
        assert "exact" not in set(failed["kind"])
        if SCALE == "paper":
            assert failed[failed["why"] == ""]["id"].tolist() == []
