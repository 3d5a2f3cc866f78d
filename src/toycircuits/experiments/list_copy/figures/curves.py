"""Training curves of both layouts."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, GREY, LEGEND_BELOW, LOG_AXIS
from toycircuits.core.tables import MODEL, model_number

GREEN = COLORS[2]
NATS = "cross-entropy (nats)"


def first_run(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first run in the table."""
    return table[table["run"] == table["run"].iloc[0]]


def at_end(training: pd.DataFrame, name: str) -> float:
    """Mean over the models of the last value of a column of the training log."""
    return float(training.groupby(MODEL)[name].last().mean())


def curves(training: pd.DataFrame, names: Mapping[str, str], y: str, title: str) -> go.Figure:
    """Columns `names` of the training log over steps: a colour each, a line for each model."""
    table = training.rename(columns=dict(names))
    table["model"] = model_number(table)
    figure = px.line(
        table.melt(["step", "model", "seed"], list(names.values()), "of", y),
        x="step",
        y=y,
        color="of",
        line_dash="of",
        line_group="model",
        hover_data=["seed"],
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "of": ""},
        title=title,
    )
    return figure.update_layout(legend={"x": 0.98, "xanchor": "right", "y": 0.5})


# The layout `next_token`


def loss(training: pd.DataFrame) -> go.Figure:
    """Training loss and loss over all lists, above the floor."""
    floor, end = training["loss_floor"].iloc[0], at_end(training, "loss")
    title = f"Loss at the end {end:.3f} nats, {end - floor:.3f} above its floor"
    figure = curves(training, {"train_loss": "batch", "loss": "all lists"}, NATS, title)
    figure.add_hline(floor, line_dash="dash", line_color=GREY)
    note = f"floor {floor:.4f} nats: d1 does not tell d2"
    place = {"xref": "paper", "x": 0.01, "xanchor": "left", "yanchor": "top", "showarrow": False}
    figure.add_annotation(text=note, y=floor, font_color=GREY, **place)
    return figure.update_yaxes(rangemode="tozero")


def accuracy(training: pd.DataFrame, published: Sequence[float] | None) -> go.Figure:
    """Exact-match accuracy over all lists and over sampled ones.

    Args:
        published: accuracies of the original study, one after each of the equal parts of the
            training, or None.
    """
    names = {"accuracy": "all lists", "accuracy_sampled": "sampled lists"}
    title = f"Lists copied exactly at the end: {at_end(training, 'accuracy'):.1%}"
    figure = curves(training, names, "exact-match accuracy", title)
    if published is not None:
        steps = np.linspace(0, training["step"].max(), len(published) + 1)[1:]
        mark = {"color": GREEN, "symbol": "diamond-open", "size": 9}
        figure.add_scatter(x=steps, y=published, mode="markers", marker=mark, name="published")
    return figure.update_yaxes(range=[-0.03, 1.05])


# The layouts `in_place` and `masked`


def copying_loss(training: pd.DataFrame) -> go.Figure:
    """Loss of the batch and of validation over the training of the first run."""
    log = first_run(training)
    title = f"Validation loss at the end: {at_end(log, 'loss'):.3g} nats"
    names = {"train_loss": "batch", "loss": "validation"}
    figure = curves(log, names, NATS, title).update_yaxes(**LOG_AXIS)
    return figure.update_layout(legend={"y": 0.98})


def copying_accuracy(training: pd.DataFrame) -> go.Figure:
    """Shares of right outputs and of right lists over the training of the first run."""
    log = first_run(training)
    names = {"accuracy": "outputs right", "accuracy_lists": "lists right"}
    title = f"Outputs right at the end: {at_end(log, 'accuracy'):.2%} (validation lists)"
    figure = curves(log, names, "accuracy (validation)", title)
    return figure.update_yaxes(range=[-0.03, 1.05])


def batch_orders(training: pd.DataFrame) -> go.Figure:
    """Validation accuracy and loss of the runs without variants, which differ in batch order."""
    log = training[training["variant"] == ""]
    names = {"accuracy": "accuracy", "loss": NATS}
    table = log.rename(columns=names).melt([*MODEL, "step"], list(names.values()), "of", "value")
    figure = px.line(
        table,
        x="step",
        y="value",
        color="run",
        line_dash="run",
        line_group="seed",
        facet_row="of",
        facet_row_spacing=0.06,
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "value": "", "run": ""},
        title="Validation with the first epoch's batches for ever, and new ones (ends when solved)",
        height=560,
    )
    figure.for_each_annotation(lambda note: note.update(text=""))
    figure.update_yaxes(matches=None)
    figure.update_yaxes(title="accuracy", row=2)
    figure.update_yaxes(title=NATS, **LOG_AXIS, row=1)
    return figure.update_layout(legend=LEGEND_BELOW)
