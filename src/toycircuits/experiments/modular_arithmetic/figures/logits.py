"""The logits against cosines of each frequency."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, DASHES
from toycircuits.experiments.modular_arithmetic.figures.loss import STEP


def logit_cosines(table: pd.DataFrame) -> go.Figure:
    """Cosine similarity of the logits with cos(w_k(a + s b - c)), and of two controls."""
    names = {"cosine": "the task's sign", "other_sign": "other sign", "noise": "noise logits"}
    long = table.rename(columns=names).melt(
        "frequency", list(names.values()), "direction", "cosine similarity"
    )
    labels = {"frequency": "frequency k", "direction": ""}
    title = "Logits against cosines of the task and controls"
    return px.bar(
        long,
        x="frequency",
        y="cosine similarity",
        color="direction",
        barmode="group",
        title=title,
        labels=labels,
    )


def cosines_over_training(
    cosines: pd.DataFrame, progress: pd.DataFrame, key: list[int]
) -> go.Figure:
    """Cosine similarity per frequency and the residual, over the checkpoints."""
    figure = go.Figure()
    names = [name for name in cosines.columns if name.startswith("k")]
    quiet = [name for name in names if int(name[1:]) not in key]
    for index, name in enumerate(quiet):
        figure.add_scatter(
            x=cosines["step"],
            y=cosines[name],
            line={"color": "#c8c8c8", "width": 1},
            name="other frequencies",
            showlegend=index == 0,
            legendgroup="others",
        )
    for index, k in enumerate(key):
        figure.add_scatter(
            x=cosines["step"],
            y=cosines[f"k{k}"],
            line={"color": COLORS[index % len(COLORS)], "dash": DASHES[index // 4 % len(DASHES)]},
            name=f"key frequency {k}",
        )
    residual = {"color": "black", "dash": "dash"}
    figure.add_scatter(x=progress["step"], y=progress["residual"], line=residual, name="residual")
    return figure.update_layout(
        title="Cosine similarity of the logits with each frequency",
        xaxis_title=STEP,
        yaxis_title="cosine similarity;<br>residual: share of norm",
    )
