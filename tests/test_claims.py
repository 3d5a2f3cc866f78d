"""What is claimed, against tables made up for it."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from toycircuits.claims import Card, Claim, Condition, Measured, judge, read_card, values
from toycircuits.config import InputError

TABLES = {
    "training": pd.DataFrame(
        {
            "run": ["a"] * 4 + ["b"] * 2,
            "variant": "",
            "seed": [0, 0, 1, 1, 0, 0],
            "step": [0, 10, 0, 20, 0, 30],
            "loss": [4.0, 1.0, 5.0, 2.0, 6.0, 0.5],
            "accuracy": [0.0, 1.0, 0.1, 0.9, 0.0, 1.0],
        }
    ),
    "ablations": pd.DataFrame(
        {
            **{"run": "a", "variant": "", "seed": [0, 0, 1, 1]},
            **{"method": ["none", "zero"] * 2, "loss": [1.0, 3.0, 2.0, 8.0]},
        }
    ),
    "rows": pd.DataFrame({"run": "a", "variant": "", "seed": 0, "label": [103, 45]}),
    "summary/grid": pd.DataFrame({"run": ["a", "b"], "rate": [0.5, 1.0]}),
}
LAST = {"table": "training", "where": {"run": "a", "step": "last"}, "value": "loss"}


def measure(**fields: Any) -> list[Any]:
    return values(Measured.parse(fields, "m"), TABLES).tolist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (LAST, [1.0, 2.0]),
        (LAST | {"where": {"run": "a", "step": "first"}}, [4.0, 5.0]),
        (LAST | {"where": {"run": "a", "step": [10, 20]}}, [1.0, 2.0]),
        (LAST | {"value": "loss * 2 + accuracy"}, [3.0, 4.9]),
        (LAST | {"where": {"run": "a"}, "reduce": "max"}, [4.0, 5.0]),
        (LAST | {"minus": {"run": "b"}, "where": {"run": "a", "seed": 0, "step": "last"}}, [0.5]),
        (LAST | {"minus": {"run": "b", "seed": 0}}, [0.5, 1.5]),
        (LAST | {"over": {"step": "first"}}, [0.25, 0.4]),
        (LAST | {"over": {"run": "b", "variant": "", "seed": 0}}, [2.0, 4.0]),
        ({"table": "rows", "value": "label", "reduce": "count"}, [2]),
        ({"table": "summary/grid", "where": {"run": "b"}, "value": "rate"}, [1.0]),
        (
            {
                **{"table": "ablations", "where": {"method": "zero"}, "value": "loss"},
                "minus": {"method": "none"},
            },
            [2.0, 6.0],
        ),
    ],
)
def test_cells(fields: dict[str, Any], expected: list[Any]) -> None:
    assert measure(**fields) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"table": "x"}, "table: found 'x'; there are: ablations, rows, summary/grid, training"),
        ({"where": {"x": 1}}, "where: found 'x'; there are: run, variant, seed, step, loss"),
        ({"where": {"run": "z"}}, 'where: no row of training with {"run": "z"}'),
        ({"where": {"run": "a"}}, "where: 2 rows of one model"),
        ({"value": "lost"}, "value: 'lost': name 'lost' is not defined; there are: run"),
        ({"value": "loss +"}, "value: 'loss +'"),
        ({"minus": {"run": ["a", "b"]}, "where": {"step": "last"}}, "several models are meant"),
    ],
)
def test_wrong_cells_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        measure(**(LAST | fields))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("condition", "holding", "failing"),
    [
        ({"equal": 3}, [3, 3.0], [3.1, "3"]),
        ({"equal": [1, 2]}, [[1, 2]], [[2, 1], 1]),
        ({"equal": "x"}, ["x"], ["y"]),
        ({"equal": 1.0, "within": 0.1}, [0.95, 1.05], [0.89, 1.11]),
        ({"equal": -2.0, "relative": 0.1}, [-2.15, -1.85], [-2.3, -1.7, 2.0]),
        ({"equal": 100, "factor": 3}, [34, 299], [33, 301]),
        ({"between": [0, 1]}, [0, 1], [-0.1, 1.1]),
        ({"between": [[0.42, 0.52], [0.8, 0.97]]}, [0.42, 0.9], [0.6, 0.98]),
        ({"at_least": 1}, [1], [0.9]),
        ({"at_most": 1}, [1], [1.1]),
        ({"above": 1}, [1.1], [1]),
        ({"below": 1}, [0.9], [1]),
        ({"above": 0, "below": 1}, [0.5], [0, 1]),
    ],
)
def test_conditions(condition: dict[str, Any], holding: list[Any], failing: list[Any]) -> None:
    asked = Condition.parse(condition, "c")
    assert [asked.holds(value) for value in holding] == [True] * len(holding)
    assert [asked.holds(value) for value in [*failing, float("nan")]] == [False] * (
        len(failing) + 1
    )
    assert str(asked)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "nothing that could fail"),
        ({"within": 1.0}, "nothing that could fail"),
        ({"above": 1.0, "within": 1.0}, "beside equal"),
        ({"equal": 1, "within": 1.0, "factor": 2.0}, "give one of them"),
        ({"equals": 1}, "unknown key"),
    ],
)
def test_conditions_that_say_nothing(condition: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Condition.parse(condition, "c")


def claim(**fields: Any) -> Claim:
    base = {
        **{"id": "x", "statement": "It is so.", "source": "here", "kind": "statistical"},
        **{"measured": LAST, "expected": {"below": 2.5}, "why": "because"},
    }
    return Claim.parse(base | fields, "claim")


@pytest.mark.parametrize(
    ("fields", "outcome", "measured"),
    [
        ({}, "reproduced", "1.5"),
        ({"expected": {"below": 1.9}}, "not reproduced", "1.5"),  # one of the models
        ({"expected": {"below": 1.9}, "of": "mean"}, "reproduced", "1.5"),
        ({"expected": {"below": 1.4}, "of": "mean"}, "not reproduced", "1.5"),
        (
            {"of": "share", "passes": {"below": 1.5}, "expected": {"equal": 0.5}},
            *("reproduced", "1 of 2"),
        ),
        (
            {"of": "share", "passes": {"below": 1.5}, "expected": {"above": 0.5}},
            *("not reproduced", "1 of 2"),
        ),
        (
            {
                "measured": {"table": "rows", "value": "label", "reduce": "list"},
                "expected": {"equal": [103, 45]},
            },
            *("reproduced", "103, 45"),
        ),
    ],
)
def test_outcomes(fields: dict[str, Any], outcome: str, measured: str) -> None:
    row = judge(claim(**fields), TABLES, "paper")
    assert (row["outcome"], row["measured"]) == (outcome, measured)
    assert row["why"] == ("because" if outcome == "not reproduced" else "")
    assert judge(claim(**fields), TABLES, "quick")["outcome"] == "not comparable"


def test_intervals() -> None:
    """Student's of a mean, Wilson's of a rate."""
    row = judge(claim(), TABLES, "paper")
    assert (row["low"], row["high"]) == pytest.approx((-4.8531, 7.8531), abs=1e-4)
    assert "models from 1 to 2" in row["interval"]
    share = {"of": "share", "passes": {"below": 1.5}, "expected": {"equal": 0.5}}
    row = judge(claim(**share), TABLES, "paper")
    assert (row["low"], row["high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4)


def test_what_is_not_there_cannot_be_compared_and_where_it_could_be_that_is_told() -> None:
    missing = claim(measured=LAST | {"where": {"run": "a", "seed": 7}})
    for scale, why in {
        "quick": "",
        "paper": 'no row of training with {"run": "a", "seed": 7}',
    }.items():
        row = judge(missing, TABLES, scale)
        assert (row["outcome"], row["measured"]) == ("not comparable", "")
        assert row["why"].endswith(why)
        assert bool(row["why"]) == bool(why)
    with pytest.raises(InputError, match="table: found"):
        judge(claim(measured=LAST | {"table": "x"}), TABLES, "paper")


def test_a_model_without_a_value_is_not_as_expected() -> None:
    tables = {"metrics": pd.DataFrame({"run": "a", "seed": [0, 1], "value": [1.0, None]})}
    measured = {"table": "metrics", "value": "value"}
    row = judge(claim(measured=measured, expected={"below": 2}), tables, "paper")
    assert (row["outcome"], row["passing"], row["models"]) == ("not reproduced", 1, 2)


CARD = {
    **{"title": "t", "question": "q?", "method": ["m"], "headline": {"loss": LAST}},
    "claims": [
        {
            **{"id": "x", "statement": "s", "source": "o", "kind": "exact", "measured": LAST},
            "expected": {"below": 3},
        }
    ],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"claims": CARD["claims"] * 2}, "claims of the same id: x"),  # type: ignore[operator]
        ({"headlines": {}}, "card.yaml.headlines: unknown key"),
        ({"title": 3}, "card.yaml.title: found 3"),
        ({"claims": [CARD["claims"][0] | {"of": "share"}]}, "passes: goes with"),  # type: ignore[index]
        (
            {"claims": [CARD["claims"][0] | {"kind": "vague"}]},  # type: ignore[index]
            "claims.0.kind: found",
        ),
    ],
)
def test_files_of_claims(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "card.yaml"
    with path.open("w") as file:
        YAML().dump(CARD | change, file)
    if message is None:
        assert isinstance(read_card(path), Card)
        return
    with pytest.raises(InputError, match=message) as error:
        read_card(path)
    assert "\n" not in str(error.value)


def test_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"card\.yaml: "):
        read_card(tmp_path / "card.yaml")


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ([1.04, -2.0], True),
        ([1.0, -2.2], False),
        ([1.0], False),
        ([1.0, -2.0, 0.0], False),
        (1.0, False),
    ],
)
def test_every_number_of_a_list_is_near(found: object, holds: bool) -> None:
    assert Condition.parse({"equal": [1.0, -2.0], "within": 0.1}, "c").holds(found) == holds


def test_one_model_that_is_named_whole_stands_beside_many() -> None:
    columns = {"run": ["a", "a", "b"], "variant": ["x", "y", ""], "seed": [0, 0, 1]}
    tables = {"losses": pd.DataFrame(columns | {"loss": [6.0, 9.0, 3.0]})}
    one = {"run": "b", "variant": "", "seed": 1}
    fields = {"table": "losses", "where": {"run": "a", "seed": 0}, "value": "loss", "over": one}
    assert values(Measured.parse(fields, "m"), tables).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"equal": 6, "within": 2}, "6 ± 2"),
        ({"equal": 1.4e-7, "factor": 10}, "1.4e-07 within a factor 10"),
        ({"equal": -3.22, "relative": 0.5}, "-3.22 ± 0.5 of it"),
    ],
)
def test_conditions_in_words(condition: dict[str, float], words: str) -> None:
    assert str(Condition.parse(condition, "c")) == words


@pytest.mark.parametrize(
    ("found", "measured", "interval"),
    [
        ([1.0, 3.0, math.nan], "2", True),
        ([1.0, math.inf, math.nan], "1", False),
        ([math.nan] * 3, "", False),
    ],
)
def test_what_is_told_leaves_out_models_without_a_value(
    found: list[float], measured: str, interval: bool
) -> None:
    tables = {"metrics": pd.DataFrame({"run": "a", "seed": [0, 1, 2], "value": found})}
    fields: dict[str, Any] = {
        **{"id": "x", "statement": "s", "source": "o", "kind": "statistical"},
        **{"measured": {"table": "metrics", "value": "value"}, "expected": {"below": 9}},
    }
    for of in ("every", "mean"):
        row = judge(Claim.parse(fields | {"of": of}, "claim"), tables, "paper")
        assert row["outcome"] == "not reproduced"
        assert (row["measured"], bool(row["interval"])) == (measured, interval)
