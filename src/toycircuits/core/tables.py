"""Tidy tables: which rows belong to which model, means and ranges over seeds, rates."""

import csv
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from toycircuits.core.config import InputError, quoted, read_text
from toycircuits.core.paths import exists, remedy

MODEL = ["run", "variant", "seed"]  # the columns that identify a model
FRAME = {  # columns of the tables that stages write for every slice; the slice adds others
    "training.csv": ["variant", "seed", "step", "lr", "train_loss"],
    "metrics.csv": ["variant", "seed", "metric", "value"],
    "ablations.csv": ["variant", "seed", "component", "layer", "head", "method"],
}
BOOLS = {"True", "False"}
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf"
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


def read_tables(folder: Path, runs: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Tables by name, each joined over `runs`, with a column for the run.

    Args:
        folder: has a folder of tables for each run. It may have others, of runs that are gone.

    Raises:
        InputError: a run has no folder, or a file is not a table.
    """
    parts = defaultdict(list)
    for run in sorted(runs):
        if not exists(folder / run):
            raise InputError(f"{folder / run}: no tables; `toycircuits repro {run}` makes them")
        for path in table_files(folder / run):
            table = read_table(path)
            column = pd.Series(run, table.index, name="run")
            parts[path.stem].append(pd.concat([column, table], axis=1))
    return {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}


def read_table(path: Path) -> pd.DataFrame:
    """The table at `path`; the variant of a run without variants is the empty string.

    A column holds numbers or texts. Only `all` and `none` may stand among numbers.

    Raises:
        InputError: the file is not such a table, or as `csv_text`.
    """
    text = csv_text(path)
    try:
        table = pd.read_csv(
            io.StringIO(text),
            dtype={"variant": str},
            keep_default_na=False,
            na_values=["", "nan"],
        )
    except ValueError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}{remedy(path)}") from None
    table = table.fillna({"variant": ""})
    _check_columns(table, path)
    return table


def _check_columns(table: pd.DataFrame, path: Path) -> None:
    """Raise an `InputError` for a column that no stage writes into the table at `path`."""
    required = FRAME.get(path.name, []) if "tables" in path.parts else []
    for name in required:
        if name not in table:
            raise InputError(f"{path}: column {name}: missing{remedy(path)}")
    if required and table.empty:
        raise InputError(f"{path}: found a header without rows{remedy(path)}")
    for label, column in table.items():
        if (name := str(label)) not in ("run", "variant") and (
            text := _what_is_odd(column, path.name)
        ):
            raise InputError(f"{path}: column {name}: found {text}{remedy(path)}")


def _what_is_odd(column: "pd.Series[Any]", file: str) -> str:
    """What a column of a table may not hold, in words; empty if all is well.

    Args:
        file: name of the file.
    """
    if column.name == "seed" and len(column) and not pd.api.types.is_integer_dtype(column):
        return f"{column.dtype}, not whole numbers"
    if pd.api.types.is_numeric_dtype(column):
        return ""
    texts = set(column.dropna().map(str))
    words = {text for text in texts if not re.fullmatch(NUMBER, text)}
    if texts & BOOLS:
        odd = texts - BOOLS
    elif file == "training.csv" or (file, column.name) == ("metrics.csv", "value"):
        odd = words or texts
    elif words == texts:
        return ""
    else:  # numbers alone would have given a column of numbers, unless one is too large
        odd = words - {"all", "none"} if words else texts
    return f"{quoted(min(odd))} among other kinds of values" if odd else ""


def csv_text(path: Path) -> str:
    """The text of the CSV file at `path`, whose rows all have a cell for each column.

    pandas would fill short rows, shift long ones and rename columns.

    Raises:
        InputError: the file cannot be read, is cut short, or is not such a table. The message
            names the line.
    """
    text = read_text(path, remedy(path))
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(rows, [])
        if not header or "" in header or len({*header}) < len(header):
            text = f"found {quoted(','.join(header))}; allowed: different names of columns"
            raise InputError(f"{path}: line 1: {text}{remedy(path)}")
        for row in rows:
            if len(row) != len(header):
                text = f"found {len(row)} cells; the header has {len(header)}"
                raise InputError(f"{path}: line {rows.line_num}: {text}{remedy(path)}")
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num}: {error}{remedy(path)}") from None
    if not text.endswith("\n"):
        raise InputError(f"{path}: line {rows.line_num}: cut short{remedy(path)}")
    return text


def table_files(folder: Path) -> list[Path]:
    """The files of tables in `folder` and in the folders below it, sorted.

    Raises:
        InputError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}")

    places = os.walk(folder, onerror=refuse)
    return sorted(
        Path(at, name) for at, _, names in places for name in names if Path(name).suffix == ".csv"
    )
