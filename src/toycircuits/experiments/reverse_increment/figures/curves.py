"""Training curves, a panel for each run."""

from collections.abc import Mapping

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, LEGEND_BELOW, bare_facets
from toycircuits.core.tables import MODEL, first_seeds

NATS = "cross-entropy (nats)"
UNTITLED_BELOW = LEGEND_BELOW | {"title": ""}
RIGHT = {"accuracy": "symbols", "accuracy_string": "whole strings"}  # what is counted


def curves(training: pd.DataFrame, names: Mapping[str, str], y: str, title: str) -> go.Figure:
    """Columns `names` of the training log over steps: a colour each, a line for each model."""
    table = training.rename(columns=dict(names))
    figure = px.line(
        table.melt(["step", *MODEL], list(names.values()), "of", y),
        x="step",
        y=y,
        color="of",
        facet_col="run",
        facet_col_spacing=0.06,
        line_group="seed",
        hover_data=["seed"],
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "of": ""},
        title=title,
    )
    return bare_facets(figure).update_layout(legend=UNTITLED_BELOW)


def loss(training: pd.DataFrame) -> go.Figure:
    """Loss of the batch and of the held-out strings."""
    names = {"train_loss": "batch", "holdout_loss": "held out"}
    return curves(training, names, NATS, "Loss of the answer's symbols")


def accuracy(training: pd.DataFrame, name: str) -> go.Figure:
    """Share of right symbols, or of right strings, in the training sample and held out.

    Args:
        name: "accuracy" or "accuracy_string".
    """
    names = {f"train_{name}": "training strings (sample)", f"holdout_{name}": "held out"}
    last = training.groupby(MODEL, sort=False)[f"holdout_{name}"].last()
    ends = last.groupby("run", sort=False).mean()
    values = ", ".join(f"{run} {end:.1%}" for run, end in ends.items())
    title = f"Mean at the end, held out: {values}"
    figure = curves(training, names, f"share of {RIGHT[name]} right", title)
    return figure.update_yaxes(range=[-0.03, 1.05])


def learning_rate(training: pd.DataFrame) -> go.Figure:
    """The learning rate of each log point, of each run's first seed: all seeds have the same."""
    peak = training["lr"].max()
    title = f"Learning rate: linear warm-up, then a cosine to zero (largest: {peak:.3g})"
    figure = curves(first_seeds(training), {"lr": "rate"}, "learning rate", title)
    return figure.update_layout(showlegend=False)
