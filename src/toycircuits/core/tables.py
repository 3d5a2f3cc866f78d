"""Tidy tables: which rows belong to which model, means and ranges over seeds, rates."""

import math
from collections import defaultdict
from pathlib import Path

import pandas as pd

from toycircuits.core.config import InputError

MODEL = ["run", "variant", "seed"]  # the columns that identify a model
Z95 = 1.959963984540054  # standard errors of a two-sided 95% interval of a normal variable


def model_number(table: pd.DataFrame) -> "pd.Series[int]":
    """The number of the model that each row belongs to, in order of appearance.

    >>> rows = {"run": ["a", "a", "b"], "variant": ["", "", None], "seed": [7, 8, 7]}
    >>> model_number(pd.DataFrame(rows)).tolist()
    [0, 1, 2]
    """
    return table.groupby(MODEL, dropna=False, sort=False).ngroup()


def first_model(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first model in the table, for pictures of weights and activations."""
    return table[model_number(table) == 0].reset_index(drop=True)


def first_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first seed of each run."""
    return table[table["seed"] == table.groupby("run")["seed"].transform("first")]


def mean_and_range(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Mean, min and max of `value` for each of `keys`; `up` and `down`: how far from the mean.

    >>> table = pd.DataFrame({"head": [0, 0, 1], "loss": [1.0, 2.0, 5.0]})
    >>> mean_and_range(table, ["head"], "loss")
       head  mean  min  max   up  down
    0     0   1.5  1.0  2.0  0.5   0.5
    1     1   5.0  5.0  5.0  0.0   0.0
    """
    stats = table.groupby(keys, sort=False)[value].agg(["mean", "min", "max"]).reset_index()
    return stats.assign(up=stats["max"] - stats["mean"], down=stats["mean"] - stats["min"])


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a success rate after Wilson (1927): the rates not rejected by a z-test.

    >>> [round(bound, 4) for bound in wilson(0, 3)], [round(bound, 4) for bound in wilson(5, 10)]
    ([0.0, 0.5615], [0.2366, 0.7634])
    """
    from scipy.stats import binomtest  # imported here because it loads slowly and few need it

    interval = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: "pd.Series[float]") -> tuple[float, float]:
    """Student's 95% interval of the mean of two or more normally distributed values.

    >>> [round(bound, 4) for bound in mean_interval(pd.Series([1.0, 2.0, 3.0]))]
    [-0.4841, 4.4841]
    """
    from scipy.stats import t  # imported here because it loads slowly and few need it

    mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Tables by name, each joined over all runs under `folder`, with a column for the run.

    Raises:
        InputError: a file is not a table.
    """
    parts = defaultdict(list)
    for path in sorted(folder.glob("*/**/*.csv")):
        table = read_table(path)
        run = pd.Series(path.relative_to(folder).parts[0], table.index, name="run")
        parts[path.stem].append(pd.concat([run, table], axis=1))
    return {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}


def read_table(path: Path) -> pd.DataFrame:
    """The table at `path`; the variant of a run without variants is the empty string.

    Raises:
        InputError: the file is not a table.
    """
    try:
        table = pd.read_csv(
            path, dtype={"variant": str}, keep_default_na=False, na_values=["", "nan"]
        )
    except ValueError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    return table.fillna({"variant": ""})
