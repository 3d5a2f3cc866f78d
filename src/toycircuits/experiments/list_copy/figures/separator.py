"""Figures of the separator's vector: principal components and linear probes."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, GREY, SEQUENTIAL, bare_facets
from toycircuits.core.tables import first_model, mean_and_range
from toycircuits.experiments.list_copy.figures.curves import first_run

COLORED_BY = {"sum": "d1 + d2", "d1": "d1", "d2": "d2"}
LIGHT_GREY = "#bbbbbb"


def pca(points: pd.DataFrame, variance: pd.DataFrame, by: str) -> go.Figure:
    """The separator's vectors on their first three components, coloured by column `by`."""
    table = first_model(points)
    table = table.assign(list=[f"({d1}, {d2})" for d1, d2 in zip(table.d1, table.d2, strict=True)])
    shares = first_model(variance)["trained"].to_list()
    axes = {f"pc{i + 1}": f"PC{i + 1} ({share:.0%})" for i, share in enumerate(shares[:3])}
    figure = px.scatter_3d(
        table,
        x="pc1",
        y="pc2",
        z="pc3",
        color=by,
        hover_name="list",
        labels={**axes, **COLORED_BY},
        color_continuous_scale=SEQUENTIAL,
        title=f"The separator's final vector, a point a list, by {COLORED_BY[by]}",
        height=560,
    )
    figure.update_traces(marker_size=5)
    camera = {"eye": {"x": 1.6, "y": 1.6, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.15}}
    return figure.update_layout(scene_camera=camera, margin={"l": 0, "r": 0, "b": 10})


def explained_variance(variance: pd.DataFrame) -> go.Figure:
    """Share of the variance of the separator's vector that each component explains."""
    table = first_model(variance)
    share = table["trained"].iloc[:3].sum()
    return px.bar(
        table.melt("component", ["trained", "untrained"], "network", "share"),
        x="component",
        y="share",
        color="network",
        barmode="group",
        color_discrete_sequence=(COLORS[0], GREY),
        labels={"component": "principal component", "share": "share of variance", "network": ""},
        title=f"Three components explain {share:.0%} of the separator's variance",
    ).update_layout(legend={"x": 0.98, "xanchor": "right", "y": 0.98})


def probes(table: pd.DataFrame) -> go.Figure:
    """Accuracy of linear probes of the separator after each layer, with controls and chance."""
    stats = mean_and_range(first_run(table), ["case", "layer", "number"], "accuracy")
    stats["layer"] = "after layer " + stats["layer"].astype(str)
    figure = px.bar(
        stats,
        x="number",
        y="mean",
        color="case",
        barmode="group",
        facet_col="layer",
        error_y="up",
        error_y_minus="down",
        color_discrete_sequence=(COLORS[0], GREY, LIGHT_GREY),
        labels={"mean": "held-out accuracy", "number": "number read", "case": ""},
        title="What a linear probe reads from the separator (dashed: chance)",
    )
    bare_facets(figure)
    figure.add_hline(table["chance"].iloc[0], line_dash="dash", line_color=GREY)
    return figure.update_yaxes(range=[0, 1.05])
