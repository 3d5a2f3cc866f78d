"""Loss over training, and the phases that it shows."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, DASHES, LOG_AXIS
from toycircuits.core.tables import MODEL, first_model, model_number

GUIDE = {"dash": "dot", "color": "black", "width": 1.5}
STEP, LOSS = "training step (full-batch epoch)", "cross-entropy loss (nats)"
PUBLISHED = {"dash": "longdash", "color": "#888888"}


def loss_curves(training: pd.DataFrame, uniform: float) -> go.Figure:
    """Training and test loss of every model, and the loss of guessing."""
    long = training.melt([*MODEL, "step"], ["train_loss", "test_loss"], "pairs", "loss")
    long["pairs"] = long["pairs"].str.removesuffix("_loss")
    long["model"] = model_number(long)
    figure = px.line(
        long,
        x="step",
        y="loss",
        color="pairs",
        line_group="model",
        log_y=True,
        title="Loss over training",
        labels={"step": STEP, "loss": LOSS, "pairs": "pairs"},
    )
    # A trace, not a shape: a shape's height would be read as an exponent on the log axis.
    ends = {"x": [0, training["step"].max()], "y": [uniform, uniform], "mode": "lines"}
    figure.add_scatter(**ends, line=GUIDE, name="guessing, ln p")
    return figure.update_yaxes(**LOG_AXIS)


def loss_with_phases(
    training: pd.DataFrame, phases: pd.DataFrame, published: tuple[int, ...] | None, uniform: float
) -> go.Figure:
    """The loss curves of the first model with the measured ends of the three phases."""
    figure = loss_curves(first_model(training), uniform)
    figure.update_layout(title="Memorisation, circuit formation, cleanup")
    steps = first_model(phases).set_index("phase")["step"]
    names = ("memorisation_end", "circuit_formation_end", "cleanup_end")
    for name, color, dash in zip(names, COLORS[2:], DASHES[1:], strict=False):
        if np.isfinite(steps[name]):
            line = {"color": color, "width": 2, "dash": dash}
            figure.add_vline(steps[name], line=line)
            label = f"{name.removesuffix('_end').replace('_', ' ')} ends at {steps[name]:.0f}"
            figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=label)
    for step in published or ():
        figure.add_vline(step, line=PUBLISHED)
    if published:
        nowhere = {"x": [None], "y": [None], "mode": "lines"}
        figure.add_scatter(**nowhere, line=PUBLISHED, name="published, by hand")
    return figure
