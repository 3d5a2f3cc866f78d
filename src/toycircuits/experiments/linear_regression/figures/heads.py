"""The numbers w and mu of every head."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import COLORS, DASHES, GREY
from toycircuits.core.tables import first_seeds
from toycircuits.experiments.linear_regression.figures.labels import (
    HEADS,
    WEIGHTS,
    parts,
    with_layer,
)

NEAR = 0.03  # share of the best rate that claims allow a sum of w mu to be off
ZERO_LINE = {"zeroline": True, "zerolinecolor": "#bbbbbb"}


def dynamics(heads: pd.DataFrame) -> go.Figure:
    """Both numbers of every head over training: a column for each model and layer."""
    columns = list(parts(with_layer(first_seeds(heads))))
    titles = [label for label, _ in columns]
    figure = make_subplots(
        2, len(columns), shared_xaxes=True, shared_yaxes=True, column_titles=titles
    )
    shown: set[int] = set()
    for column, (_, table) in enumerate(columns, start=1):
        for head in sorted(map(int, table["head"].unique())):
            line = table[table["head"] == head]
            for row, name in enumerate(WEIGHTS, start=1):
                figure.add_scatter(
                    x=line["step"],
                    y=line[name],
                    line={
                        "color": COLORS[head % len(COLORS)],
                        "dash": DASHES[head // 4 % len(DASHES)],
                        "width": 1.5,
                    },
                    name=f"head {head}",
                    legendgroup=str(head),
                    showlegend=head not in shown,
                    row=row,
                    col=column,
                )
                shown.add(head)
    for row, name in enumerate(WEIGHTS.values(), start=1):
        figure.update_yaxes(title=name, row=row, col=1)
    figure.update_xaxes(title="optimiser step", row=2)
    figure.update_yaxes(**ZERO_LINE)
    title = "w and μ of every head over training"
    return figure.update_layout(title=title, height=520, width=max(760, 210 * len(columns) + 160))


def head_comparison(compared: pd.DataFrame) -> go.Figure:
    """(w, mu) of every head of the runs that differ in their number of heads."""
    table = compared[compared["group"] == HEADS]
    figure = px.scatter(
        table,
        x="w",
        y="mu",
        color="label",
        hover_data=["seed", "head"],
        color_discrete_sequence=COLORS,
        labels=WEIGHTS | {"label": ""},
        title="w and μ of every head at the end",
    )
    figure.update_traces(marker={"size": 9, "opacity": 0.8})
    for color, (label, heads) in zip(COLORS, parts(table), strict=False):
        known = heads.dropna(subset=["published_w"])
        if len(known):
            mark = {"symbol": "diamond-open", "size": 13, "color": color, "line_width": 2}
            figure.add_scatter(
                x=known["published_w"],
                y=known["published_mu"],
                mode="markers",
                marker=mark,
                name=f"{label}, published",
            )
    figure.update_xaxes(**ZERO_LINE)
    return figure.update_yaxes(**ZERO_LINE)


def products(models: pd.DataFrame) -> go.Figure:
    """Sum of w mu over the heads of every one-layer model, beside the best rate."""
    table = models.dropna(subset=["w_mu"])
    figure = px.scatter(
        table,
        x="label",
        y="w_mu",
        color="group",
        hover_data=["seed"],
        color_discrete_sequence=COLORS,
        labels={"w_mu": "sum of w<sub>h</sub>μ<sub>h</sub>", "label": "", "group": ""},
        title=f"Sum of w μ over the heads (dashed: best rate of descent; band: {NEAR:.0%} of it)",
    )
    figure.update_traces(marker={"size": 10, "opacity": 0.8}).update_xaxes(tickangle=60)
    figure.update_yaxes(title_standoff=16)  # the subscripts hang below the line
    known = table.dropna(subset=["published_w_mu"]).drop_duplicates("label")
    if len(known):
        mark = {"symbol": "diamond-open", "size": 14, "color": "black"}
        points = {"x": known["label"], "y": known["published_w_mu"], "mode": "markers"}
        figure.add_scatter(**points, marker=mark, name="published")
    best = table["best_rate"].iloc[0]
    ends = {"y0": (1 - NEAR) * best, "y1": (1 + NEAR) * best}
    figure.add_hrect(**ends, fillcolor=GREY, opacity=0.2, line_width=0, layer="below")
    return figure.add_hline(best, line_dash="dash", line_color=GREY)
