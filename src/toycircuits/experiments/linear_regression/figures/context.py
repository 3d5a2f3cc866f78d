"""Error over the number of examples in the context."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import COLORS, GREY, LEGEND_BELOW
from toycircuits.core.tables import Z95, first_model, first_seeds
from toycircuits.experiments.linear_regression.figures.labels import (
    DESCENT,
    FEW_DECADES,
    MSE,
    parts,
)

ESTIMATORS = {  # colour and dash of each line over the number of examples
    "transformer": (COLORS[0], "solid"),
    "kernel": (COLORS[1], "dot"),
    "gradient descent": (COLORS[5], "dashdot"),
    DESCENT: (COLORS[2], "dash"),
    "ridge": (COLORS[6], "solid"),
    "untrained": (COLORS[3], "solid"),
    "zero": (GREY, "dash"),
}


def band(
    figure: go.Figure, line: pd.DataFrame, name: str, style: tuple[str, str], **options: object
) -> None:
    """A line over the number of examples with its 95% confidence band."""
    color, dash = style
    low, high = (line["mse"] + sign * Z95 * line["standard_error"] for sign in (-1, 1))
    x = line["length"].to_list()
    figure.add_scatter(
        x=x + x[::-1],
        y=high.to_list() + low.to_list()[::-1],
        fill="toself",
        fillcolor=color,
        opacity=0.25,
        line_width=0,
        mode="lines",
        hoverinfo="skip",
        **({"legendgroup": name} | options | {"showlegend": False}),
    )
    style_of = {"color": color, "dash": dash, "width": 1.75}
    options = {"legendgroup": name, **options}
    figure.add_scatter(x=x, y=line["mse"], line=style_of, mode="lines", name=name, **options)


def context(table: pd.DataFrame) -> go.Figure:
    """Error of every estimator over the number of examples: a panel a model."""
    models = list(parts(first_seeds(table)))
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    titles = [label for label, _ in models]
    figure = make_subplots(
        rows,
        columns,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=titles,
        vertical_spacing=0.2 / (rows + 1),
    )
    seen: set[str] = set()
    for index, (_, model) in enumerate(models):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        for name, line in parts(model, "estimator"):
            band(figure, line, name, ESTIMATORS[name], showlegend=name not in seen, **place)
            seen.add(name)
    drawn = first_seeds(table).query("estimator != 'ridge'")["mse"]
    # Ridge regression falls by decades. Shown to its end, it would make the others look flat.
    lowest, highest = (float(np.log10(end)) for end in (drawn.min(), drawn.max()))
    reach = [lowest - 0.15 * (highest - lowest), highest + 0.05 * (highest - lowest)]
    figure.update_yaxes(**FEW_DECADES, range=reach).update_yaxes(title=MSE, col=1)
    figure.update_xaxes(title="examples in the context", row=rows)
    floor = table.loc[table["estimator"] == "ridge", "mse"].min()
    return figure.update_layout(
        title=f"Error over the number of examples (bands: 95%; ridge falls to {floor:.1g})",
        height=320 * rows + 160,
        width=980,
        legend=LEGEND_BELOW,
    )


def context_all(table: pd.DataFrame) -> go.Figure:
    """Error of every model over the number of examples: a panel a group."""
    table = first_seeds(table)
    groups = list(parts(table, "group"))
    figure = make_subplots(
        1, len(groups), shared_yaxes=True, subplot_titles=[name for name, _ in groups]
    )
    for col, (group, models) in enumerate(groups, start=1):
        place = {"row": 1, "col": col}
        legend = {"legendgroup": group, "legendgrouptitle_text": group}
        lines = models[models["estimator"] == "transformer"]
        for color, (label, line) in zip(COLORS, parts(lines), strict=False):
            band(figure, line, label, (color, "solid"), **place, **legend)
        for name, dash in (("zero", "dash"), (DESCENT, "dot")):
            line = first_model(models[models["estimator"] == name])
            band(figure, line, name, ("black", dash), showlegend=col == 1, **place)
    figure.update_yaxes(**FEW_DECADES).update_yaxes(title=MSE, col=1)
    figure.update_xaxes(title="examples in the context")
    return figure.update_layout(
        title="Error of every model over the number of examples (bands: 95% confidence)",
        width=330 * len(groups) + 300,
        height=580,
    )
