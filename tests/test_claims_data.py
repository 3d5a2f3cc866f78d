"""The claims that the project makes: each can be looked up, and each can fail."""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from toycircuits.claims import Claim, judge, read_card, values
from toycircuits.config import read_params
from toycircuits.tables import read_table, read_tables

ROOT = Path(__file__).resolve().parents[1]
SCALE = read_params(ROOT / "params.yaml")["scale"]
CARDS = {path.stem: read_card(path) for path in sorted(ROOT.glob("claims/*.yaml"))}
CLAIMS = [(name, claim) for name, card in CARDS.items() for claim in card.claims]
WRONG = (-1e9, 1e9, 0.123456)  # one of them, at least, is not what is expected


@cache
def tables_of(experiment: str) -> dict[str, pd.DataFrame]:
    folder = ROOT / "reports" / experiment
    compared = {f"summary/{path.stem}": read_table(path) for path in folder.glob("summary/*.csv")}
    return read_tables(folder / "tables") | compared


@pytest.mark.parametrize(
    ("experiment", "claim"), CLAIMS, ids=lambda value: getattr(value, "id", value)
)
def test_every_claim_can_fail(
    experiment: str, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its cell as it is, it has a value; with other values in it, it does not hold."""
    tables = tables_of(experiment)
    assert judge(claim, tables, claim.scales[0])["measured"]

    found = values(claim.measured, tables)
    outcomes = set()
    for number in WRONG:
        same = pd.Series([number] * len(found), found.index)
        if not pd.api.types.is_numeric_dtype(found):
            same = pd.Series([[number]] * len(found), found.index)
        monkeypatch.setattr("toycircuits.claims.values", lambda *_, same=same: same)
        outcomes.add(judge(claim, tables, claim.scales[0])["outcome"])
    assert "not reproduced" in outcomes


def test_results_in_git_are_judged_as_the_claims_say_now() -> None:
    for experiment, card in CARDS.items():
        written = pd.read_csv(ROOT / f"reports/{experiment}/claims.csv").set_index("id")
        assert [*written.index] == [claim.id for claim in card.claims]
        for claim in card.claims:
            outcome = judge(claim, tables_of(experiment), SCALE)["outcome"]
            assert outcome == written.loc[claim.id, "outcome"]
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
