"""Summaries and figures of the list-copy experiments, from their tables.

Pictures of one model show the first model in the table. Curves show a line for each model, and bars
show the mean over seeds with the range. A grid consists of the runs that freeze the matrices in all
ways; a cell of it is one architecture.
"""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.plotting import Drawing
from toycircuits.core.tables import MODEL
from toycircuits.experiments.list_copy.figures import ablations, curves, patterns, separator
from toycircuits.experiments.list_copy.figures.cells import (
    GridSettings,
    batch_models,
    count_outcomes,
    grid_cells,
)
from toycircuits.experiments.list_copy.figures.grid import draw_grid

# Tables that only the layouts `in_place` and `masked` have. One that is there tells the layout.
IN_PLACE = ("outcomes", "pattern_ranges", "architecture")


class RenderSettings(Settings):
    """What to draw beside the measured values.

    Attributes:
        published_accuracy: accuracies of the original study, one after each of the equal parts of
            the training (its epochs), or null for none.
        grid: how to read the grid of architectures, if the experiment has one.
    """

    published_accuracy: tuple[float, ...] | None = Field(min_length=1)
    grid: GridSettings | None = None


def largest_drop(values: "pd.Series[float]") -> float:
    """The largest fall of a curve below its highest value so far.

    >>> largest_drop(pd.Series([0.25, 1.0, 0.5, 0.75])), largest_drop(pd.Series([0.25, 0.5, 1.0]))
    (0.5, 0.0)
    """
    return float((values.cummax() - values).max())


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Final loss and accuracy of every model; with a grid also its cells and its ways of batching.

    `largest_drop` is the largest fall of a model's accuracy below its highest one so far.
    `jump_step` is the first step at which the accuracy reached the range of those that jumped.
    """
    log = tables["training"].groupby(MODEL)
    models = log.last().assign(largest_drop=log["accuracy"].agg(largest_drop))
    grid = settings.grid
    if grid is None:
        return {"models": models.reset_index()}
    above = tables["training"]["accuracy"] >= grid.jumped[0]
    models["jump_step"] = tables["training"][above].groupby(MODEL)["step"].first()
    models = models.reset_index().merge(tables["architecture"], on=MODEL)
    plain = models[models["variant"] == ""]
    return {
        "models": models,
        "grid": grid_cells(models, grid),
        "batch_orders": count_outcomes(plain, ["run"], grid),
        "batches": count_outcomes(batch_models(models, grid), ["norm", "batches"], grid),
    }


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, Drawing]:
    """All figures, by name."""
    of_layout = draw_next_token(tables, settings)
    if any(name in tables for name in IN_PLACE):
        of_layout = draw_in_place(tables)
    drawings = {
        "attention_sample": Drawing(lambda: attention(tables["patterns"], 0)),
        "attention_mean": Drawing(lambda: attention(tables["patterns"], 1)),
        "ablations": Drawing(lambda: ablations.ablation_bars(tables["ablations"])),
        "ablation_positions": Drawing(lambda: ablations.ablation_positions(tables["ablations"])),
        **of_layout,
    }
    return drawings if settings.grid is None else drawings | draw_grid(tables, settings.grid)


def attention(table: pd.DataFrame, subset: int) -> go.Figure:
    """Attention patterns of one subset of the lists.

    Args:
        table: the table `patterns`.
        subset: 0 for the sample list, 1 for the mean over many lists.

    Raises:
        ValueError: the first run has other than two subsets.
    """
    sample, many_lists = curves.first_run(table)["subset"].unique()
    return patterns.attention(table, (sample, many_lists)[subset])


def draw_next_token(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, Drawing]:
    """The figures that only the layout `next_token` has."""
    published = settings.published_accuracy
    return {
        "loss": Drawing(lambda: curves.loss(tables["training"]), over_training=True),
        "accuracy": Drawing(
            lambda: curves.accuracy(tables["training"], published), over_training=True
        ),
        "explained_variance": Drawing(lambda: separator.explained_variance(tables["pca_variance"])),
        "probes": Drawing(lambda: separator.probes(tables["probes"])),
        **{f"pca_{by}": _pca(tables, by) for by in separator.COLORED_BY},
    }


def _pca(tables: Mapping[str, pd.DataFrame], by: str) -> Drawing:
    return Drawing(lambda: separator.pca(tables["pca"], tables["pca_variance"], by))


def draw_in_place(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    """The figures of the layouts `in_place` and `masked`, of the runs without variants."""
    return {
        "loss": Drawing(lambda: curves.copying_loss(tables["training"]), over_training=True),
        "accuracy": Drawing(
            lambda: curves.copying_accuracy(tables["training"]), over_training=True
        ),
        "batch_orders": Drawing(
            lambda: curves.batch_orders(tables["training"]), over_training=True
        ),
        "attention_ranges": Drawing(lambda: patterns.weight_ranges(tables["pattern_ranges"])),
    }
