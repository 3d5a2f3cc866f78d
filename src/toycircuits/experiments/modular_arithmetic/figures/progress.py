"""Progress measures over training."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import COLORS, LOG_AXIS
from toycircuits.experiments.modular_arithmetic.figures.loss import GUIDE, LOSS, STEP


def restricted_excluded(progress: pd.DataFrame) -> go.Figure:
    """Restricted and excluded loss beside training and test loss, with their controls."""
    solid = ["train_loss", "test_loss", "restricted_loss", "excluded_loss"]
    controls = {"other_sign": "dot", "random": "dash"}  # of the two measures, in their colours
    figure = go.Figure()
    for index, name in enumerate(solid):
        figure.add_scatter(
            x=progress["step"],
            y=progress[name],
            name=name.replace("_", " "),
            line={"color": COLORS[index], "width": 2.5},
        )
    for index, name in [*enumerate(solid)][2:]:
        for control, dash in controls.items():
            figure.add_scatter(
                x=progress["step"],
                y=progress[f"{name}_{control}"],
                name=f"{name.removesuffix('_loss')}, {control.replace('_', ' ')}",
                line={"color": COLORS[index], "width": 1.5, "dash": dash},
            )
    return figure.update_layout(
        title="Restricted and excluded loss (broken lines: controls)",
        xaxis_title=STEP,
        yaxis_title=LOSS,
        yaxis=LOG_AXIS,
        height=520,
    )


def restricted_ratio(progress: pd.DataFrame) -> go.Figure:
    """Restricted loss over test loss."""
    labels = {"step": STEP, "restricted_ratio": "restricted loss / test loss"}
    title = "Restricted loss in units of the test loss"
    figure = px.line(
        progress, x="step", y="restricted_ratio", log_y=True, title=title, labels=labels
    )
    ends = {"x": [0, progress["step"].max()], "y": [1, 1], "mode": "lines"}
    return figure.add_scatter(**ends, line=GUIDE, showlegend=False).update_yaxes(**LOG_AXIS)


def progress_measures(progress: pd.DataFrame) -> go.Figure:
    """Accuracy, Gini coefficients and squared weights over training."""
    panels = {
        "accuracy": {"train_accuracy": "train accuracy", "test_accuracy": "test accuracy"},
        "Gini coefficient": {"gini_W_E": "Gini of W_E", "gini_W_logit": "Gini of W_logit"},
        "sum of squares": {"sum_squared_weights": "all weights, squared"},
    }
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (ylabel, names) in enumerate(panels.items(), start=1):
        for index, (name, label) in enumerate(names.items()):
            figure.add_scatter(
                x=progress["step"],
                y=progress[name],
                row=row,
                col=1,
                name=label,
                line_color=COLORS[(2 * row - 2 + index) % len(COLORS)],
            )
        figure.update_yaxes(title_text=ylabel, row=row, col=1)
    figure.update_xaxes(title_text=STEP, row=len(panels))
    return figure.update_layout(title="Further progress measures", height=680)
