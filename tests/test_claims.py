"""What is claimed, against tables made up for it."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from project import ROOT
from ruamel.yaml import YAML

from toycircuits.claims.card import Card, Claim, Condition, Measured, read_card
from toycircuits.claims.lookup import NoRowError, mean_over_models, values
from toycircuits.claims.verdict import judge
from toycircuits.core.config import InputError

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
    "summary/cells": pd.DataFrame({"cell": ["x", "y"], "step": [10, 20], "rate": [0.5, 2.0]}),
    "words": pd.DataFrame(
        {"run": "a", "seed": [0, 1], "word": ["up", "down"], "ok": [True, False]}
    ),
    "long": pd.DataFrame(
        {"run": "a", "seed": 0, "metric": ["x", "x", "y"], "step": [0, 5, 9], "value": [1.0, 2, 3]}
    ),
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
        # A table about no model in particular has one value; its last step is that of the table.
        ({"table": "summary/cells", "where": {"cell": "x"}, "value": "rate"}, [0.5]),
        ({"table": "summary/cells", "where": {"step": "last"}, "value": "rate"}, [2.0]),
        ({"table": "summary/cells", "value": "rate", "reduce": "mean"}, [1.25]),
        (
            {
                **{"table": "summary/cells", "where": {"cell": "y"}, "value": "rate"},
                "over": {"cell": "x"},
            },
            [4.0],
        ),
        # The last step of a metric, whichever comes first.
        ({"table": "long", "where": {"step": "last", "metric": "x"}, "value": "value"}, [2.0]),
        ({"table": "long", "where": {"metric": "x", "step": "last"}, "value": "value"}, [2.0]),
        ({"table": "words", "value": "ok", "reduce": "mean"}, [1.0, 0.0]),
        ({"table": "words", "where": {"seed": 0}, "value": "ok", "minus": {"seed": 1}}, [1]),
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
        ({"table": "x"}, "table: found 'x'; there are: ablations, long, rows, summary/cells, "),
        ({"where": {"x": 1}}, "where: found 'x'; there are: run, variant, seed, step, loss"),
        ({"where": {"run": "z"}}, 'where: no row of training with {"run": "z"}'),
        ({"where": {"run": "a"}}, "where: 2 rows of one model"),
        ({"value": "lost"}, "value: 'lost': name 'lost' is not defined; there are: run"),
        ({"value": "loss +"}, "value: 'loss +'"),
        ({"minus": {"run": ["a", "b"]}, "where": {"step": "last"}}, "several models are meant"),
        ({"value": ""}, "m.value: found"),
        ({"value": "  "}, "value: found '  ', which is not one value for each row"),
        ({"value": "loss = 3"}, "value: found 'loss = 3', which is not one value for each row"),
        ({"value": "3"}, "which is not one value for each row; allowed: an expression of columns"),
        ({"value": "loss.max()"}, "which is not one value for each row"),
        ({"value": "loss.head(1)"}, "which is not one value for each row"),
        ({"value": "loss.sort_values(ascending=False)"}, "which is not one value for each row"),
        ({"value": "loss, step"}, "which is not one value for each row"),
        ({"value": "loss.foo"}, "value: 'loss.foo': 'Series' object has no attribute 'foo'"),
        ({"value": "loss["}, "value: 'loss['"),
        ({"value": "loss if step"}, "value: 'loss if step'"),
        ({"value": "foo(loss)"}, "value: 'foo(loss)'"),
        ({"value": "1 / 0"}, "value: '1 / 0': division by zero"),
        ({"value": "run + 1"}, "value: 'run + 1'"),
        ({"value": "run", "reduce": "mean"}, 'reduce: mean: found "a"; allowed are numbers'),
        ({"value": "run", "reduce": "sum"}, 'reduce: sum: found "a"; allowed are numbers'),
        ({"value": "run", "minus": {"step": "first"}}, 'minus: found "a"; allowed are numbers'),
        ({"value": "run", "over": {"step": "first"}}, 'over: found "a"; allowed are numbers'),
        ({"reduce": "list", "over": {"step": "first"}}, "over: found [1.0]; allowed are numbers"),
        ({"minus": {}}, "minus: found {}; allowed: rows that differ from where"),
        ({"over": {"step": "last"}}, 'over: found {"step": "last"}; allowed: rows that differ'),
    ],
)
def test_wrong_cells_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        measure(**(LAST | fields))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_models_without_one_to_compare_them_with_are_named() -> None:
    fields = {"table": "training", "where": {"run": "a", "step": "last"}, "value": "loss"}
    with pytest.raises(NoRowError, match=r"^over: no row beside that of seed 1$"):
        measure(**fields, over={"run": "b"})
    row = judge(claim(measured=fields | {"over": {"run": "b"}}), TABLES, "paper")
    assert (row["outcome"], row["measured"], row["models"]) == ("not comparable", "", 0)
    assert row["why"] == "over: no row beside that of seed 1"


@pytest.mark.parametrize(
    ("fields", "mean"),
    [
        (LAST, 1.5),
        ({"table": "words", "value": "ok"}, 0.5),
        (LAST | {"where": {"run": "gone"}}, None),
        ({"table": "lacking", "where": {"seed": [0, 1]}, "value": "value"}, 1.0),
        ({"table": "lacking", "where": {"seed": 1}, "value": "value"}, None),
        ({"table": "lacking", "where": {"seed": 2}, "value": "value"}, None),
    ],
)
def test_headlines(fields: dict[str, Any], mean: float | None) -> None:
    found = [1.0, math.nan, math.inf]
    tables = TABLES | {"lacking": pd.DataFrame({"run": "a", "seed": [0, 1, 2], "value": found})}
    assert mean_over_models(Measured.parse(fields, "m"), tables) == mean


def test_a_headline_is_a_number() -> None:
    with pytest.raises(InputError, match='value: found "up"; allowed are numbers'):
        mean_over_models(Measured(table="words", value="word"), TABLES)


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
    nothing = [float("nan"), float("inf"), -float("inf"), None]
    assert [asked.holds(value) for value in [*failing, *nothing]] == [False] * (len(failing) + 4)
    assert str(asked)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "nothing that could fail"),
        ({"within": 1.0}, "nothing that could fail"),
        ({"above": 1.0, "within": 1.0}, "beside equal"),
        ({"equal": 1, "within": 1.0, "factor": 2.0}, "give one of them"),
        ({"equals": 1}, "unknown key"),
        ({"between": []}, r"between: found \[\]; allowed: two numbers, or a list of such pairs"),
        ({"between": [3, 1]}, r"between: found \[3.0, 1.0\]; allowed: the lower end first"),
        ({"between": [[0, 1], [3, 2]]}, r"between: found \[3.0, 2.0\]; allowed: the lower end"),
        (
            {"equal": 0, "factor": 2.0},
            "factor: found it beside equal: 0; allowed there: a number a",
        ),
        ({"equal": -2.0, "factor": 2.0}, "factor: found it beside equal: -2.0; allowed there"),
        ({"equal": "x", "factor": 2.0}, 'factor: found it beside equal: "x"; allowed there'),
        ({"equal": [1.0], "factor": 2.0}, r"factor: found it beside equal: \[1.0\]; allowed there"),
        ({"equal": 0.0, "relative": 0.1}, "relative: found it beside equal: 0.0; allowed there"),
        ({"equal": [1], "relative": 0.1}, r"relative: found it beside equal: \[1\]; allowed there"),
        ({"equal": "x", "within": 1.0}, 'within: found it beside equal: "x"; allowed there: a num'),
        ({"equal": ["x"], "within": 1.0}, "within: found it beside equal"),
        ({"equal": [[1]], "within": 1.0}, "within: found it beside equal"),
        ({"equal": True, "within": 1.0}, "within: found it beside equal: true"),
        ({"equal": []}, r"equal: found \[\]; allowed: text, a finite number, or a list of some"),
        ({"equal": [1.0, math.nan]}, r"equal: found \[1.0, NaN\]; allowed"),
        ({"between": [0, math.inf]}, "found Infinity"),
        ({"below": math.inf}, "found Infinity"),
        ({"equal": "x", "below": 3.0}, 'equal: found "x" beside bounds; allowed is a number'),
        ({"above": 2, "at_most": 2}, "found ≤ 2 and > 2, which no number is"),
        ({"at_least": 2, "below": 1}, "which no number is"),
        ({"between": [[0, 1], [3, 4]], "above": 1, "below": 3}, "which no number is"),
        ({"equal": 3, "above": 3}, "which no number is"),
        ({"equal": 3, "within": 1.0, "above": 4}, "which no number is"),
    ],
)
def test_conditions_that_say_nothing(condition: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Condition.parse(condition, "c")


@pytest.mark.parametrize(
    "condition",
    [
        {"at_least": 2, "at_most": 2},
        {"between": [[0, 1], [3, 4]], "above": 1, "at_most": 3},
        {"equal": 3, "within": 1.0, "at_least": 4},
        {"equal": 3, "within": 1.0, "above": 3.5},
        {"equal": 3, "factor": 2.0, "above": 5.5},
        {"equal": -3.0, "relative": 0.5, "at_most": -4.5},
        {"above": -1e-9, "below": 1e-9},
        {"equal": [1.0], "within": 0.0},
    ],
)
def test_conditions_that_little_fulfils(condition: dict[str, Any]) -> None:
    assert Condition.parse(condition, "c")


@pytest.mark.parametrize(
    ("condition", "found", "message"),
    [
        ({"below": 3}, "up", 'below: found "up"; allowed is a number'),
        ({"between": [0, 1]}, [1], "between: found [1]; allowed is a number"),
        ({"equal": 3, "within": 1.0}, "up", 'within: found "up"; allowed is a number'),
        ({"equal": 3, "relative": 0.1}, [3.0], "relative: found [3.0]; allowed is a number"),
        ({"equal": 3, "factor": 2.0}, "up", 'factor: found "up"; allowed is a number'),
        ({"equal": [1, 2], "within": 1.0}, [1, "up"], 'within: found [1, "up"]; allowed are num'),
    ],
)
def test_what_is_no_number_cannot_be_compared_with_one(
    condition: dict[str, Any], found: object, message: str
) -> None:
    with pytest.raises(InputError) as error:
        Condition.parse(condition, "c").holds(found)
    assert str(error.value).startswith(message)


def claim(**fields: Any) -> Claim:
    base = {
        **{"id": "x", "statement": "It is so.", "source": "here", "kind": "statistical"},
        **{"measured": LAST, "expected": {"below": 2.5}, "why": "because"},
    }
    return Claim.parse(base | fields, "claim")


@pytest.mark.parametrize(
    ("fields", "outcome", "measured"),
    [
        ({}, "reproduced", "1 to 2"),
        ({"expected": {"below": 1.9}}, "not reproduced", "1 to 2"),  # one of the models
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
        # As many digits as it takes to see that 0.99996 is below 1.
        (
            {"measured": LAST | {"value": "loss * 0 + 0.99996"}, "expected": {"at_least": 1}},
            *("not reproduced", "0.99996"),
        ),
        (
            {
                "measured": LAST | {"value": "(loss - 1.5) / 50 + 0.99996"},
                **{"expected": {"at_least": 1}, "of": "mean"},
            },
            *("not reproduced", "0.99996"),
        ),
        (
            {"measured": LAST | {"value": "loss * 1.23456789"}, "kind": "exact"},
            *("reproduced", "1.23456789 to 2.46913578"),
        ),
        ({"measured": LAST | {"value": "loss * 20904.3"}}, "not reproduced", "20904 to 41809"),
        (
            {"measured": {"table": "words", "value": "word"}, "expected": {"equal": "up"}},
            *("not reproduced", "up; down"),
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
    assert row["interval"] == "mean 1.5, -4.853 to 7.853 (t, 95%)"
    row = judge(claim(of="mean"), TABLES, "paper")
    assert (row["low"], row["high"]) == pytest.approx((-4.8531, 7.8531), abs=1e-4)
    assert row["interval"] == "mean -4.853 to 7.853 (t, 95%); models from 1 to 2"
    share = {"of": "share", "passes": {"below": 1.5}, "expected": {"equal": 0.5}}
    row = judge(claim(**share), TABLES, "paper")
    assert (row["low"], row["high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4)


@pytest.mark.parametrize("of", ["every", "mean"])
def test_models_that_are_all_alike_have_no_interval(of: str) -> None:
    row = judge(claim(measured=LAST | {"value": "loss * 0 + 2"}, of=of), TABLES, "paper")
    assert (row["outcome"], row["measured"]) == ("reproduced", "2")
    assert (row["interval"], row["low"], row["high"]) == ("", None, None)


def test_only_a_mean_does_not_say_how_many_models_pass() -> None:
    share = {"of": "share", "passes": {"below": 1.5}, "expected": {"equal": 0.5}}
    asked: list[tuple[dict[str, Any], int | None]] = [({}, 1), ({"of": "mean"}, None), (share, 1)]
    for fields, passing in asked:
        row = judge(claim(**{"expected": {"below": 1.9}} | fields), TABLES, "paper")
        assert (row["models"], row["passing"]) == (2, passing)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measured": {"table": "words", "value": "word"}}, 'expected.below: found "up"; allowed'),
        (
            {"measured": {"table": "words", "value": "word"}, "of": "mean"},
            'of: mean: found "up"; allowed are numbers',
        ),
        (
            {"measured": {"table": "rows", "value": "label", "reduce": "list"}, "of": "mean"},
            "of: mean: found [103, 45]; allowed are numbers",
        ),
        (
            {
                **{"measured": {"table": "words", "value": "word"}, "of": "share"},
                **{"passes": {"above": 1}, "expected": {"above": 0.5}},
            },
            'passes.above: found "up"; allowed is a number',
        ),
    ],
)
def test_claims_about_what_is_no_number(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        judge(claim(**fields), TABLES, "paper")
    assert str(error.value).startswith(message)
    assert judge(claim(**fields), TABLES, "quick")["outcome"] == "not comparable"


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
    **{"title": "t", "question": "q?", "method": ["m"], "key_metrics": {"loss": LAST}},
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
        ({"claims": []}, r"card\.yaml\.claims: found \[\]"),
        (
            {"claims": [CARD["claims"][0] | {"scales": []}]},  # type: ignore[index]
            r"claims\.0\.scales: found \[\]",
        ),
        ({"key_metrics": {"claims": LAST}}, "key_metrics: found the name claims"),
        *[
            (
                {"claims": [CARD["claims"][0] | {"of": "share", "passes": {"above": 0}} | own]},  # type: ignore[index]
                message,
            )
            for own, message in [
                ({"expected": {"at_least": 0}}, "expected: found ≥ 0, which every share is"),
                ({"expected": {"between": [0, 1]}}, "expected: found 0 to 1, which every share is"),
                ({"expected": {"above": 1}}, "expected: found > 1, which no share is"),
                ({"expected": {"equal": "x"}}, "expected: found x, which no share is"),
                ({"expected": {"equal": 0.5}}, None),
                ({"expected": {"above": 0}}, None),
                ({"expected": {"at_least": 1}}, None),
            ]
        ],
        (
            {"claims": [CARD["claims"][0] | {"of": "mean", "expected": {"equal": [1, 2]}}]},  # type: ignore[index]
            "expected: found 1, 2, which no mean is",
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", r"card\.yaml: not valid YAML: "),
        (b"title: \xff", r"card\.yaml: 'utf-8' codec can't decode byte 0xff"),
        (b"when: 2024-02-31", r"card\.yaml: not valid YAML: day is out of range"),
        (b"2024-01-01: x", r"card\.yaml: found the key datetime\.date\(2024, 1, 1\); keys are"),
        (b"3: x", r"card\.yaml: found the key 3; keys are printable text"),
        (b"title: {3: x}", r"card\.yaml: title: found the key 3; keys are printable text"),
        (b"", r"card\.yaml: found null"),
    ],
)
def test_files_that_hold_no_claims(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "card.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_card(tmp_path / "card.yaml")
    assert "\n" not in str(error.value)


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
    ("found", "every", "mean"),
    [
        ([1.0, 3.0, math.nan], "1 to 3; no value in 1 of 3 models", "2; no value in 1 of 3 models"),
        ([1.0, math.inf, math.nan], *["1; no value in 2 of 3 models"] * 2),
        ([1.0, math.inf, 1.0], *["1; no value in 1 of 3 models"] * 2),
        ([math.nan] * 3, *["no value"] * 2),
        ([math.inf] * 3, *["no value"] * 2),
    ],
)
def test_models_without_a_value_are_told_apart_and_fail(
    found: list[float], every: str, mean: str
) -> None:
    tables = {"metrics": pd.DataFrame({"run": "a", "seed": [0, 1, 2], "value": found})}
    fields: dict[str, Any] = {
        **{"id": "x", "statement": "s", "source": "o", "kind": "statistical"},
        **{"measured": {"table": "metrics", "value": "value"}},
    }
    for of, measured in {"every": every, "mean": mean}.items():
        for expected in ({"below": 9}, {"above": 0}):
            asked = fields | {"of": of, "expected": expected}
            row = judge(Claim.parse(asked, "claim"), tables, "paper")
            assert (row["outcome"], row["measured"]) == ("not reproduced", measured)
            assert bool(row["interval"]) == (found[:2] == [1.0, 3.0])


# The stage

YAML_CLAIM = """
- id: learns
  statement: It learns.
  source: this project
  kind: statistical
  measured: {{table: training, where: {{step: last}}, value: {value}}}
  expected: {{below: 1}}
"""


def check(folder: Path, value: str) -> subprocess.CompletedProcess[str]:
    """Run the stage on two models and one claim."""
    head = "title: t\nquestion: q\nmethod: []\nheadline:\n"
    head += "  loss: {table: training, where: {step: last}, value: loss}\n"
    head += "  gone: {table: training, where: {step: 7}, value: loss}\n"
    (folder / "claims").mkdir()
    (folder / "claims/e.yaml").write_text(head + "claims:" + YAML_CLAIM.format(value=value))
    (folder / "params.yaml").write_text("scale: paper\n")
    (folder / "reports/e/tables/r").mkdir(parents=True)
    rows = "variant,seed,step,loss\n,0,9,0.5\n,1,9,0.75\n"
    (folder / "reports/e/tables/r/training.csv").write_text(rows)
    command = [sys.executable, str(ROOT / "stages/check_claims.py"), "e"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_headline_without_a_row_has_no_value(tmp_path: Path) -> None:
    assert (check(tmp_path, "loss").returncode) == 0
    told = json.loads((tmp_path / "reports/e/metrics.json").read_text())
    counts = {"reproduced": 1, "not_reproduced": 0, "not_comparable": 0}
    assert told == {"claims": counts, "loss": 0.625, "gone": None}
    row = pd.read_csv(tmp_path / "reports/e/claims.csv", dtype=str, keep_default_na=False).iloc[0]
    assert (row["measured"], row["passing"], row["models"]) == ("0.5 to 0.75", "2", "2")


def test_a_slip_in_a_claim_is_one_line(tmp_path: Path) -> None:
    done = check(tmp_path, "loss = 3")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: claims/e.yaml: learns.value: found 'loss = 3', which is not one value for each "
        "row; allowed: an expression of columns; there are: run, variant, seed, step, loss"
    ]
