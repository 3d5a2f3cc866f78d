"""Values are looked up in made-up tables, and claims are judged by them."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from project import ROOT

from toycircuits.claims.card import Claim, Measured
from toycircuits.claims.lookup import NoRowError, mean_over_models, values
from toycircuits.claims.verdict import judge, read_verdicts, write_verdicts
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
        # A table about all models together has one value; "last" means the last step of the table.
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
        # The last step of the metric, in whichever order the columns are given.
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
        (
            {"value": "lost"},
            "value: found 'lost': character 1: found 'lost'; there are: run, variant",
        ),
        ({"value": "loss +"}, "m.value: character 1: found 'loss +'; allowed: names of columns"),
        (
            {"minus": {"run": ["a", "b"]}, "where": {"step": "last"}},
            "several models match; name one run",
        ),
        ({"value": ""}, "m.value: found"),
        ({"value": "  "}, "m.value: character 3: found 'the end'; allowed: names of columns"),
        ({"value": "3"}, "m.value: found '3'; allowed: an expression with a column"),
        ({"value": "loss.max()"}, "m.value: character 1: found 'loss.max'; allowed: names of col"),
        (
            {"value": "run + 1"},
            "value: found 'run + 1': character 1: found something else beside +",
        ),
        ({"value": "run", "reduce": "mean"}, 'reduce: mean: found "a"; allowed: numbers'),
        ({"value": "run", "reduce": "sum"}, 'reduce: sum: found "a"; allowed: numbers'),
        ({"value": "run", "minus": {"step": "first"}}, 'minus: found "a"; allowed: numbers'),
        ({"value": "run", "over": {"step": "first"}}, 'over: found "a"; allowed: numbers'),
        ({"reduce": "list", "over": {"step": "first"}}, "over: found [1.0]; allowed: numbers"),
        ({"minus": {}}, "minus: found {}; allowed: a column with another value than in where"),
        (
            {"over": {"step": "last"}},
            'over: found {"step": "last"}; allowed: a column with another',
        ),
    ],
)
def test_wrong_cells_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        measure(**(LAST | fields))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_models_without_a_partner_are_named() -> None:
    fields = {"table": "training", "where": {"run": "a", "step": "last"}, "value": "loss"}
    with pytest.raises(NoRowError, match=r"^over: no row matches for seed 1$"):
        measure(**fields, over={"run": "b"})
    row = judge(claim(measured=fields | {"over": {"run": "b"}}), TABLES, "paper")
    assert (row["outcome"], row["measured"], row["models"]) == ("not comparable", "", 0)
    assert row["why"] == "over: no row matches for seed 1"


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
def test_key_metrics(fields: dict[str, Any], mean: float | None) -> None:
    numbers = [1.0, math.nan, math.inf]
    lacking = pd.DataFrame({"run": "a", "seed": [0, 1, 2], "value": numbers})
    tables = TABLES | {"lacking": lacking}
    assert mean_over_models(Measured.parse(fields, "m"), tables) == mean


def test_a_key_metric_is_a_number() -> None:
    with pytest.raises(InputError, match='value: found "up"; allowed: numbers'):
        mean_over_models(Measured(table="words", value="word"), TABLES)


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
        # So many digits that 0.99996 is seen to be below 1.
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
    """Student's t for a mean, Wilson's for a rate."""
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
def test_models_with_equal_values_have_no_interval(of: str) -> None:
    row = judge(claim(measured=LAST | {"value": "loss * 0 + 2"}, of=of), TABLES, "paper")
    assert (row["outcome"], row["measured"]) == ("reproduced", "2")
    assert (row["interval"], row["low"], row["high"]) == ("", None, None)


def test_only_a_mean_does_not_say_how_many_models_pass() -> None:
    share = {"of": "share", "passes": {"below": 1.5}, "expected": {"equal": 0.5}}
    cases: list[tuple[dict[str, Any], int | None]] = [({}, 1), ({"of": "mean"}, None), (share, 1)]
    for fields, passing in cases:
        row = judge(claim(**{"expected": {"below": 1.9}} | fields), TABLES, "paper")
        assert (row["models"], row["passing"]) == (2, passing)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"measured": {"table": "words", "value": "word"}},
            'expected.below: the measured value is "up"; allowed: a number',
        ),
        (
            {"measured": {"table": "words", "value": "word"}, "of": "mean"},
            'of: mean: found "up"; allowed: numbers',
        ),
        (
            {"measured": {"table": "rows", "value": "label", "reduce": "list"}, "of": "mean"},
            "of: mean: found [103, 45]; allowed: numbers",
        ),
        (
            {
                **{"measured": {"table": "words", "value": "word"}, "of": "share"},
                **{"passes": {"above": 1}, "expected": {"above": 0.5}},
            },
            'passes.above: the measured value is "up"; allowed: a number',
        ),
    ],
)
def test_claims_that_need_numbers_and_get_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        judge(claim(**fields), TABLES, "paper")
    assert str(error.value).startswith(message)
    assert judge(claim(**fields), TABLES, "quick")["outcome"] == "not comparable"


def test_a_missing_row_is_not_comparable_and_the_reason_is_given_at_the_claims_scale() -> None:
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


def test_many_models_are_divided_by_one_that_is_fully_named() -> None:
    columns = {"run": ["a", "a", "b"], "variant": ["x", "y", ""], "seed": [0, 0, 1]}
    tables = {"losses": pd.DataFrame(columns | {"loss": [6.0, 9.0, 3.0]})}
    partner = {"run": "b", "variant": "", "seed": 1}
    fields = {"table": "losses", "where": {"run": "a", "seed": 0}, "value": "loss", "over": partner}
    assert values(Measured.parse(fields, "m"), tables).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("numbers", "every", "mean"),
    [
        ([1.0, 3.0, math.nan], "1 to 3; no value in 1 of 3 models", "2; no value in 1 of 3 models"),
        ([1.0, math.inf, math.nan], *["1; no value in 2 of 3 models"] * 2),
        ([1.0, math.inf, 1.0], *["1; no value in 1 of 3 models"] * 2),
        ([math.nan] * 3, *["no value"] * 2),
        ([math.inf] * 3, *["no value"] * 2),
    ],
)
def test_models_without_a_value_are_counted_and_fail(
    numbers: list[float], every: str, mean: str
) -> None:
    tables = {"metrics": pd.DataFrame({"run": "a", "seed": [0, 1, 2], "value": numbers})}
    fields: dict[str, Any] = {
        **{"id": "x", "statement": "s", "source": "o", "kind": "statistical"},
        **{"measured": {"table": "metrics", "value": "value"}},
    }
    for of, measured in {"every": every, "mean": mean}.items():
        for expected in ({"below": 9}, {"above": 0}):
            parsed = Claim.parse(fields | {"of": of, "expected": expected}, "claim")
            row = judge(parsed, tables, "paper")
            assert (row["outcome"], row["measured"]) == ("not reproduced", measured)
            assert bool(row["interval"]) == (numbers[:2] == [1.0, 3.0])


def test_verdicts_are_read_as_they_were_written(tmp_path: Path) -> None:
    """As text: a count stays an integer, and a cell without a value stays empty."""
    claims = [claim(id="every"), claim(id="mean", of="mean", published=49)]
    write_verdicts(tmp_path / "claims.csv", [judge(item, TABLES, "paper") for item in claims])
    every, mean = read_verdicts(tmp_path / "claims.csv").to_dict("records")
    assert (every["id"], every["models"], every["passing"], every["published"]) == (
        *("every", "2", "2", ""),
    )
    assert (mean["id"], mean["models"], mean["passing"], mean["published"]) == (
        *("mean", "2", "", "49"),
    )


@pytest.mark.parametrize("content", [b"", b"id,outcome\n\xff,x\n", b"id\n1,2\n3,4,5\n"])
def test_a_file_that_is_no_table_of_verdicts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "claims.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"claims\.csv: ") as error:
        read_verdicts(tmp_path / "claims.csv")
    assert "\n" not in str(error.value)


# The stage

YAML_CLAIM = """
- id: learns
  statement: It learns.
  source: this project
  kind: statistical
  measured: {{table: training, where: {{step: last}}, value: {value}}}
  expected: {{below: 1}}
"""


def judge_stage(folder: Path, value: str) -> subprocess.CompletedProcess[str]:
    """Run the stage on two models and one claim."""
    head = "title: t\nquestion: q\nmethod: []\nkey_metrics:\n"
    head += "  loss: {table: training, where: {step: last}, value: loss}\n"
    head += "  gone: {table: training, where: {step: 7}, value: loss}\n"
    (folder / "claims").mkdir()
    (folder / "claims/e.yaml").write_text(head + "claims:" + YAML_CLAIM.format(value=value))
    params: dict[str, Any] = {
        "scale": "paper",
        "experiments": {"e": {"slice": "s", "runs": ["r"]}},
        "paper": {"e": {}},
    }
    params["runs"] = {"r": {"experiment": "e"}}
    (folder / "params.yaml").write_text(json.dumps(params))
    (folder / "reports/e/tables/r").mkdir(parents=True)
    rows = "variant,seed,step,lr,train_loss,loss\n,0,9,1,2,0.5\n,1,9,1,2,0.75\n"
    (folder / "reports/e/tables/r/training.csv").write_text(rows)
    command = [sys.executable, str(ROOT / "stages/judge.py"), "e"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_key_metric_without_a_row_has_no_value(tmp_path: Path) -> None:
    assert judge_stage(tmp_path, "loss").returncode == 0
    metrics = json.loads((tmp_path / "reports/e/metrics.json").read_text())
    counts = {"reproduced": 1, "not_reproduced": 0, "not_comparable": 0}
    assert metrics == {"claims": counts, "loss": 0.625, "gone": None}
    row = read_verdicts(tmp_path / "reports/e/claims.csv").iloc[0]
    assert (row["measured"], row["passing"], row["models"]) == ("0.5 to 0.75", "2", "2")


def test_an_error_in_a_claim_is_one_line(tmp_path: Path) -> None:
    done = judge_stage(tmp_path, "lost")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: claims/e.yaml: learns.value: found 'lost': character 1: found 'lost'; "
        "there are: run, variant, seed, step, lr, train_loss, loss"
    ]
