"""Tables: models told apart, first ones picked, spreads and rates."""

from pathlib import Path

import pandas as pd
import pytest

from toycircuits.core.config import InputError, runs_of
from toycircuits.core.tables import (
    first_model,
    first_seeds,
    mean_and_range,
    model_number,
    read_tables,
    wilson,
)

TABLE = pd.DataFrame(
    {
        "run": ["b", "b", "b", "a", "a"],
        "variant": ["x", "y", "x", "", ""],
        "seed": [2, 2, 1, 2, 3],
        "loss": [1.0, 2.0, 6.0, 4.0, 8.0],
    }
)


def test_models_are_numbered_in_order_of_appearance() -> None:
    assert model_number(TABLE).tolist() == [0, 1, 2, 3, 4]
    assert model_number(pd.concat([TABLE, TABLE])).tolist() == [0, 1, 2, 3, 4] * 2


def test_first_model_and_first_seeds() -> None:
    assert first_model(TABLE)["loss"].tolist() == [1.0]
    assert first_seeds(TABLE)["loss"].tolist() == [1.0, 2.0, 4.0]
    assert first_model(TABLE.head(0)).empty


def test_spread_keeps_the_order_and_reaches_the_extremes() -> None:
    stats = mean_and_range(TABLE, ["run"], "loss")
    assert stats["run"].tolist() == ["b", "a"]
    assert stats["mean"].tolist() == [3.0, 6.0]
    assert (stats["mean"] + stats["up"]).tolist() == [6.0, 8.0]
    assert (stats["mean"] - stats["down"]).tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # From the tables of Newcombe (1998), Statistics in Medicine 17, p. 861, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (3, 3, 0.4385, 1.0),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_tables_of_runs_that_are_gone_are_not_read(tmp_path: Path) -> None:
    """They may stay in the folder. But a run without tables is an error, and not left out."""
    for run in ("b", "a", "gone"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "t.csv").write_text(f"variant,seed,x\n,0,{len(run)}\n")
    tables = read_tables(tmp_path, ["b", "a"])
    assert tables["t"]["run"].tolist() == ["a", "b"]
    with pytest.raises(InputError, match="c: no tables; `toycircuits repro c` makes them"):
        read_tables(tmp_path, ["a", "c"])


def test_runs_of_an_experiment_are_those_that_its_entry_lists() -> None:
    params = {"experiments": {"e": {"runs": ["a", "c"]}, "f": {"runs": [3]}, "g": {}}}
    assert runs_of(params, "e") == ["a", "c"]
    with pytest.raises(InputError, match="experiments: missing key"):
        runs_of({}, "e")
    with pytest.raises(InputError, match=r"experiments\.f\.runs: found \[3\]; allowed is a list"):
        runs_of(params, "f")
    with pytest.raises(InputError, match=r"experiments\.g\.runs: missing key"):
        runs_of(params, "g")
