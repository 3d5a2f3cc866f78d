"""The grid of architectures as tables: a cell is one architecture, a row counts its models."""

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.tables import wilson

ARCHITECTURE = ["n_layers", "normalization", "use_bias", "freeze_W_V", "freeze_W_O"]
# Columns of the grid, by (freeze_W_V, freeze_W_O), in the order of the published values.
FREEZING = {
    (False, False): "both trained",
    (False, True): "W_O frozen",
    (True, False): "W_V frozen",
    (True, True): "both frozen",
}
NO_STEPS = (np.nan, np.nan)
Steps = tuple[int, int]
T = TypeVar("T")
OUTCOMES = (
    *("models", "solved", "rate", "rate_low", "rate_high", "on_plateau", "jumped"),
    *("accuracy", "lowest", "highest", "step", "jump_step"),
)


class GridSettings(Settings):
    """How to read the grid of architectures, and what was published about it.

    Attributes:
        solved: a model of at least this accuracy counts as solved: it copies lists.
        plateau, jumped: ranges of accuracy in which other models are counted.
        batches: run -> how it draws its batches. The comparison of batches shows the models of
            these runs that have both matrices frozen and no biases.
        published_accuracy: run -> accuracy of its cells: first those without LayerNorm, of these
            first those without biases, and of these in the order of `FREEZING`.
        published_steps: run -> first and last step at which its cells were seen solved, in the
            same order.
    """

    solved: float = Field(gt=0, le=1)
    plateau: tuple[float, float]
    jumped: tuple[float, float]
    batches: dict[str, str]
    published_accuracy: dict[str, Annotated[tuple[float, ...], Field(min_length=len(FREEZING))]]
    published_steps: dict[str, Annotated[tuple[Steps, ...], Field(min_length=len(FREEZING))]]


def grid_models(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the runs that belong to the grid: those that freeze matrices in all four ways."""
    way = 2 * table["freeze_W_V"].astype(int) + table["freeze_W_O"].astype(int)
    return table[way.groupby(table["run"]).transform("nunique") == len(FREEZING)]


def batch_models(table: pd.DataFrame, grid: GridSettings) -> pd.DataFrame:
    """Models of one architecture, without and with LayerNorm, by how their batches are drawn.

    Adds the columns `batches` and `norm`. Rows are in the order of `grid.batches`.
    """
    frozen = table["freeze_W_V"] & table["freeze_W_O"] & ~table["use_bias"]
    models = table[frozen & table["run"].isin(grid.batches)]
    places = {run: place for place, run in enumerate(grid.batches)}
    models = models.assign(
        batches=models["run"].map(grid.batches),
        norm=normalization(models),
        place=models["run"].map(places),
    )
    return models.sort_values(["norm", "place"], ascending=[False, True], kind="stable")


def count_outcomes(models: pd.DataFrame, keys: list[str], grid: GridSettings) -> pd.DataFrame:
    """Number of models with each kind of final accuracy, one row per value of the columns `keys`.

    `rate` is the share of solved models, with its 95% interval; `step` is their median last step.
    `jump_step` is the median over the models that jumped.
    """
    rows = []
    for values, group in models.groupby(keys, sort=False):
        accuracy = group["accuracy"]
        solved, jumped = accuracy >= grid.solved, accuracy.between(*grid.jumped)
        low, high = wilson(int(solved.sum()), len(group))
        rows.append(
            {
                **dict(zip(keys, values, strict=True)),
                **{"models": len(group), "solved": int(solved.sum())},
                **{"rate": solved.mean(), "rate_low": low, "rate_high": high},
                "on_plateau": int(accuracy.between(*grid.plateau).sum()),
                "jumped": int(jumped.sum()),
                **{"accuracy": accuracy.mean(), "lowest": accuracy.min()},
                **{"highest": accuracy.max(), "step": group.loc[solved, "step"].median()},
                "jump_step": group.loc[jumped, "jump_step"].median(),
            }
        )
    return pd.DataFrame(rows, columns=[*keys, *OUTCOMES])  # they are there without models, too


def grid_cells(models: pd.DataFrame, grid: GridSettings) -> pd.DataFrame:
    """One row per cell of the grid: measured values, and the published ones beside them."""
    in_order = grid_models(models).sort_values(ARCHITECTURE, key=_published_order, kind="stable")
    table = count_outcomes(in_order, ["run", *ARCHITECTURE], grid)
    places = list(zip(table["run"], table.groupby("run").cumcount(), strict=True))
    accuracy = _by_place(grid.published_accuracy)
    steps = _by_place(grid.published_steps)
    table["published_accuracy"] = [accuracy.get(place, np.nan) for place in places]
    ends = [steps.get(place, NO_STEPS) for place in places]
    columns = ["published_step_from", "published_step_to"]
    table[columns] = np.array(ends, dtype=float).reshape(-1, 2)
    return table


def _by_place(published: Mapping[str, Sequence[T]]) -> dict[tuple[str, int], T]:
    """What was published about each cell, by its run and its place there."""
    return {
        (run, place): value
        for run, values in published.items()
        for place, value in enumerate(values)
    }


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The table in the published order, with columns that name each cell of the grid in words.

    `depth` and `kind`, together `shape`, name its row; `freezing` names its column.
    """
    table = table.sort_values(ARCHITECTURE, key=_published_order, kind="stable")
    kind = normalization(table) + ", " + table["use_bias"].map({True: "bias", False: "no bias"})
    depth = table["n_layers"].astype(str) + " layers"
    freezing = [FREEZING[frozen] for frozen in _frozen(table)]
    return table.assign(depth=depth, kind=kind, shape=depth + ", " + kind, freezing=freezing)


def normalization(table: pd.DataFrame) -> "pd.Series[str]":
    """The normalization of each row in words: LN, or no LN."""
    return table["normalization"].where(table["normalization"] == "LN", "no LN")


def _published_order(column: pd.Series) -> pd.Series:
    """Sort key of a column of `ARCHITECTURE`: models without LayerNorm come first."""
    return column == "LN" if column.name == "normalization" else column


def _frozen(table: pd.DataFrame) -> list[tuple[bool, bool]]:
    """(freeze_W_V, freeze_W_O) of each row."""
    flags = zip(table["freeze_W_V"], table["freeze_W_O"], strict=True)
    return [(bool(value), bool(output)) for value, output in flags]
