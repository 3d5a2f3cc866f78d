"""What each component is worth."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import LOG
from toycircuits.experiments.modular_arithmetic.figures.loss import LOSS


def ablation_bars(ablations: pd.DataFrame) -> go.Figure:
    """Test loss and accuracy after each ablation."""
    table = ablations[ablations["pairs"] == "test"]
    heads = table["head"].astype(object).fillna("").astype(str).str.removesuffix(".0")
    where = heads.where(heads.isin(["", "all"]), " head " + heads).replace("all", "")
    label = table["component"] + where + ", " + table["method"]
    label = label.replace("none, none", "nothing ablated")
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)
    figure.add_bar(y=label, x=table["loss"], orientation="h", row=1, col=1)
    figure.add_bar(y=label, x=table["accuracy"], orientation="h", row=1, col=2)
    figure.update_xaxes(title_text=LOSS, **LOG, row=1, col=1)
    figure.update_xaxes(title_text="accuracy", range=[0, 1.02], row=1, col=2)
    figure.update_yaxes(autorange="reversed")
    title = "Test pairs after ablating one component"
    return figure.update_layout(title=title, showlegend=False, height=160 + 22 * len(table))
