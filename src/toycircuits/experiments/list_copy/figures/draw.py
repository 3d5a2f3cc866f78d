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
from toycircuits.core.tables import MODEL
from toycircuits.experiments.list_copy.figures import ablations, curves, patterns, separator
from toycircuits.experiments.list_copy.figures.cells import (
    GridSettings,
    batch_models,
    count_outcomes,
    grid_cells,
)
from toycircuits.experiments.list_copy.figures.grid import draw_grid


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


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name."""
    sample, many_lists = curves.first_run(tables["patterns"])["subset"].unique()
    figures = {
        "attention_sample": patterns.attention(tables["patterns"], sample),
        "attention_mean": patterns.attention(tables["patterns"], many_lists),
        "ablations": ablations.ablation_bars(tables["ablations"]),
        "ablation_positions": ablations.ablation_positions(tables["ablations"]),
    }
    figures |= draw_in_place(tables) if "outcomes" in tables else draw_next_token(tables, settings)
    return figures if settings.grid is None else figures | draw_grid(tables, settings.grid)


def draw_next_token(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, go.Figure]:
    """The figures that only the layout `next_token` has."""
    training, variance = tables["training"], tables["pca_variance"]
    figures = {
        "loss": curves.loss(training),
        "accuracy": curves.accuracy(training, settings.published_accuracy),
        "explained_variance": separator.explained_variance(variance),
        "probes": separator.probes(tables["probes"]),
    }
    return figures | {
        f"pca_{by}": separator.pca(tables["pca"], variance, by) for by in separator.COLORED_BY
    }


def draw_in_place(tables: Mapping[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """The figures of the layouts `in_place` and `masked`, of the runs without variants."""
    return {
        "loss": curves.copying_loss(tables["training"]),
        "accuracy": curves.copying_accuracy(tables["training"]),
        "batch_orders": curves.batch_orders(tables["training"]),
        "attention_ranges": patterns.weight_ranges(tables["pattern_ranges"]),
    }
