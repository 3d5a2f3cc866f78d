"""The values that a claim is about: one for each model, from the tables of an experiment."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from toycircuits.claims.card import Measured, Rows, short
from toycircuits.core.config import InputError
from toycircuits.core.tables import MODEL, read_table, read_tables


class NoRowError(InputError):
    """A table has no row that a claim is about, as under settings that somebody changed."""


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables that claims speak of: all of the experiment whose reports stand in `folder`.

    Raises:
        InputError: a file is not a table.
    """
    compared = sorted(folder.glob("summary/*.csv"))
    summary = {f"summary/{path.stem}": read_table(path) for path in compared}
    return read_tables(folder / "tables") | summary


def values(measured: Measured, tables: Mapping[str, pd.DataFrame]) -> "pd.Series[Any]":
    """One value for each model, under its run, variant and seed.

    A table that has none of these columns is about all models together, and gives one value.

    Raises:
        NoRowError: the table has no such row, or none of some model to subtract or to divide by.
        InputError: there is no such table or column, a model has several rows, or text stands where
            a number is needed.
    """
    result = _look_up(measured, measured.where, tables)
    for key, change in (("minus", measured.minus), ("over", measured.over)):
        if change is not None:
            other = _look_up(measured, measured.where | change, tables)
            result = as_numbers(result, key)
            other = _beside(result, as_numbers(other, key), key, change)
            result = result / other if key == "over" else result - other
    return result


def mean_over_models(measured: Measured, tables: Mapping[str, pd.DataFrame]) -> float | None:
    """Mean over the models that have a value; None if there is none, or no such row.

    Raises:
        InputError: as `values`, or its values are no numbers.
    """
    try:
        found = values(measured, tables)
    except NoRowError:  # as under other settings, for which claims are not comparable
        return None
    told = float(as_numbers(found, "value").mean())
    return told if math.isfinite(told) else None


def as_numbers(found: "pd.Series[Any]", key: str) -> "pd.Series[Any]":
    """`found`, truth values being 0 and 1.

    Raises:
        InputError: it has no numbers.
    """
    if not pd.api.types.is_numeric_dtype(found):
        example = next(iter([*found.dropna(), *found]))
        raise InputError(f"{key}: found {short(example)}; allowed are numbers")
    return found.astype(int) if pd.api.types.is_bool_dtype(found) else found


def _beside(
    result: "pd.Series[Any]", other: "pd.Series[Any]", key: str, change: Rows
) -> "pd.Series[Any]":
    """Values of `other` for the models of `result`: the same but for what `change` names.

    Raises:
        NoRowError: `other` has no such model.
        InputError: several models are meant.
    """
    same = [name for name in result.index.names if name not in change]

    def places(values: "pd.Series[Any]") -> list[tuple[Any, ...]]:
        levels = [values.index.get_level_values(str(name)) for name in same]
        return list(zip(*levels, strict=True)) if levels else [()] * len(values)

    known = dict(zip(places(other), other, strict=True))
    if len(known) < len(other):
        raise InputError(f"{key}: several models are meant; name their run, variant and seed")
    if lone := [place for place in places(result) if place not in known]:
        told = [
            " ".join(f"{name} {part}" for name, part in zip(same, place, strict=True) if part != "")
            for place in lone
        ]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        raise NoRowError(f"{key}: no row beside that of {', '.join(told[:5])}{more}")
    return pd.Series([known[place] for place in places(result)], result.index)


def _look_up(
    measured: Measured, where: Rows, tables: Mapping[str, pd.DataFrame]
) -> "pd.Series[Any]":
    """The value of each model in the rows that `where` means, whatever is subtracted from it."""
    if measured.table not in tables:
        raise InputError(f"table: found {measured.table!r}; there are: {', '.join(sorted(tables))}")
    table = _rows(tables[measured.table], where)
    if table.empty:
        raise NoRowError(f"where: no row of {measured.table} with {json.dumps(where)}")
    result = _evaluate(table, measured.value)
    if measured.reduce in ("mean", "sum"):
        result = as_numbers(result, f"reduce: {measured.reduce}")
    by_model = result.groupby(_models(table), dropna=False, sort=False)
    if measured.reduce:
        return pd.Series(by_model.agg(list if measured.reduce == "list" else measured.reduce))
    if (by_model.size() > 1).any():
        text = f"{by_model.size().max()} rows of one model with {json.dumps(where)}"
        raise InputError(f"where: {text}; name one, or say how to reduce them")
    return pd.Series(by_model.first())


def _models(table: pd.DataFrame) -> "list[pd.Series[Any]]":
    """What tells the models of a table apart; the same for all rows, if nothing does."""
    return [table[name] for name in MODEL if name in table] or [
        pd.Series(0, table.index, name="all models")
    ]


def _rows(table: pd.DataFrame, where: Rows) -> pd.DataFrame:
    """Rows of the table that are as `where` says."""
    for column, wanted in where.items():
        if column not in table:
            raise InputError(f"where: found {column!r}; there are: {', '.join(map(str, table))}")
        if column != "step" or wanted not in ("first", "last"):
            table = table[table[column].isin(wanted if isinstance(wanted, list) else [wanted])]
    # In the end, as the last row of a metric is not always one of the last rows.
    if (end := where.get("step")) in ("first", "last"):
        steps = table.groupby(_models(table), dropna=False)["step"]
        table = table[table["step"] == steps.transform("min" if end == "first" else "max")]
    return table


def _evaluate(table: pd.DataFrame, expression: str) -> "pd.Series[Any]":
    """The value of `expression` in each row of `table`.

    Raises:
        InputError: it is no expression of the columns, or has not one value a row.
    """
    columns = ", ".join(map(str, table))
    try:
        result = table.eval(expression, engine="python")
    except Exception as error:  # whatever pandas, Python's parser and methods of columns raise
        reason = " ".join(str(error).split())
        raise InputError(f"value: {expression!r}: {reason}; there are: {columns}") from None
    if not isinstance(result, pd.Series) or not result.index.equals(table.index):
        found = f"value: found {expression!r}, which is not one value for each row"
        raise InputError(f"{found}; allowed: an expression of columns; there are: {columns}")
    return result
