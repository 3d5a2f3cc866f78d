"""What each head is worth."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import COLORS, LEGEND_BELOW
from toycircuits.core.tables import first_seeds
from toycircuits.experiments.linear_regression.figures.labels import COLUMNS, MSE, parts

KINDS = {
    ("z", "zero"): "output zeroed",
    ("z", "mean"): "output at its mean",
    ("pattern", "uniform"): "uniform attention",
}


def head_pruning(ablations: pd.DataFrame) -> go.Figure:
    """Error after each ablation of each head: a panel a model."""
    models = list(parts(first_seeds(ablations)))
    columns = min(COLUMNS, len(models))
    n_rows = -(-len(models) // columns)
    titles = [label for label, _ in models]
    figure = make_subplots(
        n_rows, columns, shared_yaxes="all", subplot_titles=titles, vertical_spacing=0.25 / n_rows
    )
    for index, (_, model) in enumerate(models):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        for color, ((component, method), name) in zip(COLORS, KINDS.items(), strict=False):
            rows = model[(model["component"] == component) & (model["method"] == method)]
            heads = rows["head"].astype(float).astype(int).astype(str)
            if model["layer"].nunique() > 1:
                heads = rows["layer"].astype(float).astype(int).astype(str) + "." + heads
            figure.add_bar(
                x=heads,
                y=rows["loss"],
                marker_color=color,
                name=name,
                legendgroup=name,
                showlegend=index == 0,
                **place,
            )
        unablated = model.loc[model["component"] == "none", "loss"].item()
        figure.add_hline(unablated, line_dash="dash", line_color="black", **place)
    figure.update_xaxes(type="category").update_yaxes(title=MSE, col=1)
    for index in range(max(0, len(models) - columns), len(models)):  # the lowest of each column
        place = {"row": index // columns + 1, "col": index % columns + 1}
        figure.update_xaxes(title="head, or layer.head", **place)
    return figure.update_layout(
        title="Error with one head pruned (dashed: nothing pruned)",
        width=max(760, 270 * columns + 60),
        height=250 * n_rows + 160,
        legend=LEGEND_BELOW,
    )
