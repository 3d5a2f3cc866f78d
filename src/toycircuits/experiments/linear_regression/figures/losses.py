"""Loss over training, and the final loss of every model."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import COLORS, GREY
from toycircuits.core.tables import Z95
from toycircuits.experiments.linear_regression.figures.labels import (
    DESCENT,
    FEW_DECADES,
    MSE,
    parts,
)


def losses(training: pd.DataFrame, reference: float) -> go.Figure:
    """Validation loss of every model over training: a panel a group, a line a seed."""
    groups = list(parts(training, "group"))
    titles = [name for name, _ in groups]
    figure = make_subplots(1, len(groups), shared_yaxes=True, subplot_titles=titles)
    for column, (group, table) in enumerate(groups, start=1):
        for color, (label, lines) in zip(COLORS, parts(table), strict=False):
            for index, (_, line) in enumerate(parts(lines, "seed")):
                figure.add_scatter(
                    x=line["step"],
                    y=line["validation_loss"],
                    line={"color": color, "width": 1.5},
                    mode="lines",
                    name=label,
                    legendgroup=group,
                    legendgrouptitle_text=group,
                    showlegend=index == 0,
                    row=1,
                    col=column,
                )
    figure.add_hline(reference, line_dash="dash", line_color=GREY)
    figure.update_xaxes(title="optimiser step").update_yaxes(**FEW_DECADES).update_yaxes(
        title=MSE, col=1
    )
    title = f"Loss over training (dashed: {DESCENT}, {reference:.3f})"
    return figure.update_layout(title=title, width=320 * len(groups) + 200, height=560)


def final_losses(models: pd.DataFrame) -> go.Figure:
    """How far every model's final loss is above that of gradient descent at the best rate.

    The right panel shows those that are near it close up.
    """
    near = 4 * float(models["excess_high"].abs().median())
    titles = ["all", "close-up, without those far off"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for color, (group, models_of_group) in zip(COLORS, parts(models, "group"), strict=False):
        excess = models_of_group["excess_mse"]
        for col in (1, 2):
            figure.add_scatter(
                x=models_of_group["label"],
                y=excess.where((col == 1) | (excess.abs() < near)),
                error_y={"array": Z95 * models_of_group["excess_standard_error"]},
                mode="markers",
                marker={"color": color, "size": 8},
                name=group,
                showlegend=col == 1,
                row=1,
                col=col,
            )
    figure.add_hline(0, line_dash="dash", line_color=GREY)
    figure.update_yaxes(range=[-near / 2, near], row=1, col=2).update_xaxes(tickangle=60)
    figure.update_yaxes(title="mean squared error above it", row=1, col=1)
    return figure.update_layout(
        title=f"Final loss above that of {DESCENT} (bars: 95% confidence)", width=980
    )
