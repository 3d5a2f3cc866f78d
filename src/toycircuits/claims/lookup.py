"""Look up the values that a claim is about, one for each model, in the tables."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from toycircuits.claims.card import Measured, Rows
from toycircuits.claims.expression import evaluate, parse
from toycircuits.core.config import InputError
from toycircuits.core.messages import quoted, short
from toycircuits.core.paths import exists
from toycircuits.core.tables import MODEL, read_table, read_tables, table_files


class NoRowError(InputError):
    """A table has no row that matches, for example because somebody changed the settings."""


def tables_of(folder: Path, runs: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The tables that claims may name: those of `runs`, and summaries over all runs.

    Args:
        folder: the reports of the experiment.

    Raises:
        InputError: a run has no tables, or a file is not a table.
    """
    summary = folder / "summary"
    summaries = table_files(summary) if exists(summary) else []
    named = {f"summary/{path.stem}": read_table(path) for path in summaries}
    return read_tables(folder / "tables", runs) | named


def values(measured: Measured, tables: Mapping[str, pd.DataFrame]) -> "pd.Series[Any]":
    """One value for each model, with its run, variant and seed as the index.

    A table without these columns is about all models together and gives one value.

    Raises:
        NoRowError: no row matches, or a model has no row to subtract or to divide by.
        InputError: the table or a column does not exist, a model has several rows, or text stands
            where a number is needed.
    """
    result = _look_up(measured, measured.where, tables)
    for key, change in (("minus", measured.minus), ("over", measured.over)):
        if change is not None:
            other = _look_up(measured, measured.where | change, tables)
            result = as_numbers(result, key)
            other = _match_models(result, as_numbers(other, key), key, change)
            result = result / other if key == "over" else result - other
    return result


def mean_over_models(measured: Measured, tables: Mapping[str, pd.DataFrame]) -> float | None:
    """Mean over the models that have a finite value. None if no model has one or no row matches.

    Raises:
        InputError: as for `values`, or the values are not numbers.
    """
    try:
        numbers = as_numbers(values(measured, tables), "value")
    except NoRowError:  # the settings are not those that the claims are about
        return None
    mean = float(numbers.mean())
    return mean if math.isfinite(mean) else None


def as_numbers(series: "pd.Series[Any]", key: str) -> "pd.Series[Any]":
    """`series` with true as 1 and false as 0.

    Raises:
        InputError: it does not hold numbers. The message names `key`.
    """
    if not pd.api.types.is_numeric_dtype(series):
        example = next(iter([*series.dropna(), *series]))
        raise InputError(f"{key}: found {short(example)}; allowed: numbers")
    return series.astype(int) if pd.api.types.is_bool_dtype(series) else series


def _match_models(
    result: "pd.Series[Any]", other: "pd.Series[Any]", key: str, change: Rows
) -> "pd.Series[Any]":
    """For each model of `result`, the value of its partner in `other`.

    The partner agrees with the model in run, variant and seed, except for those named in `change`.

    Raises:
        NoRowError: a model has no partner in `other`.
        InputError: a model has several partners.
    """
    shared = [str(name) for name in result.index.names if name not in change]

    def identities(series: "pd.Series[Any]") -> list[tuple[Any, ...]]:
        levels = [series.index.get_level_values(name) for name in shared]
        return list(zip(*levels, strict=True)) if levels else [()] * len(series)

    partners = dict(zip(identities(other), other, strict=True))
    if len(partners) < len(other):
        raise InputError(f"{key}: several models match; name one run, variant and seed")
    if lone := [identity for identity in identities(result) if identity not in partners]:
        names = [_model_in_words(shared, identity) for identity in lone[:5]]
        more = f" and {len(lone) - 5} more" if len(lone) > 5 else ""
        raise NoRowError(f"{key}: no row matches for {', '.join(names)}{more}")
    return pd.Series([partners[identity] for identity in identities(result)], result.index)


def _model_in_words(columns: list[str], identity: tuple[Any, ...]) -> str:
    """A model as a message names it, such as "run a seed 1"; an empty variant is left out."""
    pairs = zip(columns, identity, strict=True)
    return " ".join(f"{column} {value}" for column, value in pairs if value != "")


def _look_up(
    measured: Measured, where: Rows, tables: Mapping[str, pd.DataFrame]
) -> "pd.Series[Any]":
    """The value of each model in the rows that match `where`, without `minus` and `over`."""
    if measured.table not in tables:
        raise InputError(f"table: found {measured.table!r}; there are: {', '.join(sorted(tables))}")
    table = _matching_rows(tables[measured.table], where)
    if table.empty:
        raise NoRowError(f"where: no row of {measured.table} with {json.dumps(where)}")
    result = _evaluate(table, measured.value)
    if measured.reduce in ("mean", "sum"):
        result = as_numbers(result, f"reduce: {measured.reduce}")
    by_model = result.groupby(_model_columns(table), dropna=False, sort=False)
    if measured.reduce:
        return pd.Series(by_model.agg(list if measured.reduce == "list" else measured.reduce))
    if (by_model.size() > 1).any():
        text = f"{by_model.size().max()} rows of one model match {json.dumps(where)}"
        raise InputError(f"where: {text}; choose one of them, or combine them with reduce")
    return pd.Series(by_model.first())


def _model_columns(table: pd.DataFrame) -> "list[pd.Series[Any]]":
    """The columns that identify a model. If there are none, all rows count as one model."""
    return [table[name] for name in MODEL if name in table] or [
        pd.Series(0, table.index, name="all models")
    ]


def _matching_rows(table: pd.DataFrame, where: Rows) -> pd.DataFrame:
    """The rows of the table that match `where`."""
    for column, wanted in where.items():
        if column not in table:
            raise InputError(f"where: found {column!r}; there are: {', '.join(map(str, table))}")
        if column != "step" or wanted not in ("first", "last"):
            table = table[table[column].isin(wanted if isinstance(wanted, list) else [wanted])]
    # The step comes after all other columns: a metric may not have a row at a model's last step.
    if (end := where.get("step")) in ("first", "last"):
        steps = table.groupby(_model_columns(table), dropna=False)["step"]
        table = table[table["step"] == steps.transform("min" if end == "first" else "max")]
    return table


def _evaluate(table: pd.DataFrame, expression: str) -> "pd.Series[Any]":
    """The value of `expression` in each row of `table`.

    Raises:
        InputError: it is not an expression of the columns, or its values do not fit together.
    """
    try:
        return evaluate(parse(expression), table)
    except ValueError as error:
        raise InputError(f"value: found {quoted(expression)}: {error}") from None
