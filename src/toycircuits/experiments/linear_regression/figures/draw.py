"""Figures and summaries of in-context linear regression, made from its tables alone.

Where a picture shows weights, they are those of the first seed.
"""

from collections.abc import Mapping

import pandas as pd

from toycircuits.core.config import Settings
from toycircuits.core.plotting import Drawing
from toycircuits.core.tables import MODEL
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


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, Drawing]:
    """All figures, by name."""
    models = find_models(tables)

    def rows(name: str) -> pd.DataFrame:
        return named(tables[name])

    drawings = {
        "losses": Drawing(
            lambda: losses(rows("training"), loss_of_descent(rows("losses"))), over_training=True
        ),
        "context_heads": Drawing(lambda: context(_where(tables["context"], "group", HEADS))),
        "context_all": Drawing(lambda: context_all(rows("context"))),
        "head_comparison": Drawing(lambda: head_comparison(tables["heads_compared"])),
        "products": Drawing(lambda: products(tables["models"])),
        "final_losses": Drawing(lambda: final_losses(tables["models"])),
        "head_pruning": Drawing(lambda: head_pruning(rows("ablations"))),
        **draw_weights(tables, models),
    }
    if HEADS not in set(models["group"]):  # these two show no other models
        del drawings["context_heads"], drawings["head_comparison"]
    return drawings


def find_models(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The models with their groups and labels: no rows if no table tells them.

    Tables of measurements name the same models. The first one that is there tells them.
    """
    for name in ("heads", "qk", "ov", "context"):
        if name in tables:
            return named(tables[name][MODEL].drop_duplicates())
    return pd.DataFrame(columns=[*MODEL, "group", "label"])


def draw_weights(tables: Mapping[str, pd.DataFrame], models: pd.DataFrame) -> dict[str, Drawing]:
    """The figures of the heads' weights: one for each group of runs, then those of each run.

    Args:
        models: as `find_models` returns them.
    """
    drawings = {f"dynamics_{g}": _dynamics(tables, g) for g, _ in parts(models, "group")}
    for run, models_of_run in parts(models, "run"):
        name = run.rpartition("_")[2]
        drawings[f"circuits_{name}"] = _circuits(tables, run)
        if models_of_run["group"].iloc[0] == HEADS:
            drawings[f"qk_evolution_{name}"] = _qk_evolution(tables, run)
    return drawings


def loss_of_descent(final: pd.DataFrame) -> float:
    """Mean squared error of gradient descent at its best rate, from the table `losses`."""
    return float(final.loc[final["estimator"] == DESCENT, "mse"].iloc[0])


def _dynamics(tables: Mapping[str, pd.DataFrame], group: str) -> Drawing:
    return Drawing(lambda: dynamics(_where(tables["heads"], "group", group)), over_training=True)


def _circuits(tables: Mapping[str, pd.DataFrame], run: str) -> Drawing:
    return Drawing(lambda: circuits(*(_where(tables[name], "run", run) for name in ("qk", "ov"))))


def _qk_evolution(tables: Mapping[str, pd.DataFrame], run: str) -> Drawing:
    return Drawing(lambda: qk_evolution(_where(tables["qk"], "run", run)), over_training=True)


def _where(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """The rows of the named table that have `value` in `column`."""
    table = named(table)
    return table[table[column] == value]
