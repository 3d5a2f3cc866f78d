"""Figures and summaries of in-context linear regression, made from its tables alone.

Where a picture shows weights, they are those of the first seed.
"""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from toycircuits.core.config import Settings
from toycircuits.experiments.linear_regression.figures.circuits import circuits, qk_evolution
from toycircuits.experiments.linear_regression.figures.context import context, context_all
from toycircuits.experiments.linear_regression.figures.heads import (
    dynamics,
    head_comparison,
    products,
)
from toycircuits.experiments.linear_regression.figures.labels import DESCENT, HEADS, named, parts
from toycircuits.experiments.linear_regression.figures.losses import final_losses, losses
from toycircuits.experiments.linear_regression.figures.pruning import head_pruning
from toycircuits.experiments.linear_regression.figures.published import (
    Published,
    summarise_heads,
    summarise_models,
)


class RenderSettings(Settings):
    """What to show beside the measured values.

    Attributes:
        published: by run, or None where there is nothing to compare with.
    """

    published: dict[str, Published] | None


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """(w, mu) of every head and the sums and losses of every model, beside published values."""
    published = settings.published or {}
    return {
        "heads_compared": summarise_heads(tables["heads"], published),
        "models": summarise_models(tables["losses"], tables["sums"], published),
    }


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name."""
    names = ("training", "heads", "qk", "ov", "context", "losses", "ablations")
    training, heads, qk, ov, errors, final, ablations = (named(tables[name]) for name in names)
    models = tables["models"]
    reference = final.loc[final["estimator"] == DESCENT, "mse"].iloc[0]
    figures = {
        "losses": losses(training, reference),
        "context_heads": context(errors[errors["group"] == HEADS]),
        "context_all": context_all(errors),
        "head_comparison": head_comparison(tables["heads_compared"]),
        "products": products(models),
        "final_losses": final_losses(models),
        "head_pruning": head_pruning(ablations),
    }
    for group, heads_of_group in parts(heads, "group"):
        figures[f"dynamics_{group}"] = dynamics(heads_of_group)
    for run, qk_of_run in parts(qk, "run"):
        name = run.rpartition("_")[2]
        figures[f"circuits_{name}"] = circuits(qk_of_run, ov[ov["run"] == run])
        if qk_of_run["group"].iloc[0] == HEADS:
            figures[f"qk_evolution_{name}"] = qk_evolution(qk_of_run)
    return figures
