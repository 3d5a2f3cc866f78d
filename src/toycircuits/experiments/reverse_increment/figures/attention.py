"""Figures of attention: heatmaps of patterns, and the weights on the anti-diagonal."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, GREY, bare_facets
from toycircuits.core.tables import first_seeds, mean_and_range
from toycircuits.experiments.reverse_increment.figures.curves import UNTITLED_BELOW
from toycircuits.experiments.reverse_increment.figures.heatmaps import heatmaps

EVERYTHING = "all held-out strings"  # as the tables call the mean over them
CELL = ("symbol", "key", "weight")
APART = 0.12  # of a key: keeps the error bars of two cases side by side


def attention(patterns: pd.DataFrame, run: str) -> go.Figure:
    """Attention of the first seed of `run` to the string: its mean and samples, layer by layer."""
    table = first_seeds(mirrored(patterns[patterns["run"] == run]))
    table = table.assign(string=table["string"].str.replace(" ", ""))
    table["string"] = table["string"].replace({EVERYTHING.replace(" ", ""): "mean"})
    title = f"Attention from the outputs to the string, {run}, seed {table['seed'].iloc[0]}"
    title += " (dots: the symbol needed)"
    return heatmaps(table, ("where", "string"), CELL, title, cmin=0, cmax=1)


def attention_seeds(patterns: pd.DataFrame) -> go.Figure:
    """Mean attention over the held-out strings, of every seed."""
    table = mirrored(patterns[patterns["string"] == EVERYTHING])
    table = table.assign(seed="seed " + table["seed"].astype(str))
    table["where"] = table["run"] + ", " + table["where"]
    title = "Mean attention over held-out strings (dots: the symbol needed)"
    return heatmaps(table, ("where", "seed"), CELL, title, cmin=0, cmax=1)


def mirrored(patterns: pd.DataFrame) -> pd.DataFrame:
    """The table with layer and head in words, and the anti-diagonal marked."""
    where = "layer " + patterns["layer"].astype(str)
    if patterns["head"].max() > 0:
        where += ", head " + patterns["head"].astype(str)
    marked = patterns["symbol"] + patterns["key"] == patterns["key"].max()
    return patterns.assign(where=where, marked=marked)


def mirror(table: pd.DataFrame) -> go.Figure:
    """Mean attention on each anti-diagonal before and after training, and under even attention."""
    keys = ["run", "layer", "case", "shift"]
    long = pd.concat([table, table.assign(case="uniform", weight=table["uniform"])])
    stats = mean_and_range(long, keys, "weight")
    stats["layer"] = "layer " + stats["layer"].astype(str)
    aside = stats["case"].map({"untrained": -APART, "trained": APART}).fillna(0)
    figure = px.line(
        stats.assign(place=stats["shift"] + aside),
        x="place",
        y="mean",
        color="case",
        facet_col="run",
        facet_row="layer",
        error_y="up",
        error_y_minus="down",
        markers=True,
        color_discrete_map={"trained": COLORS[0], "untrained": COLORS[1], "uniform": GREY},
        labels={"place": "key, from the one needed", "mean": "mean weight"},
        title="Attention on the symbol needed (0) and on its neighbours in the string",
        height=560,
    )
    figure.update_xaxes(dtick=1)
    return bare_facets(figure).update_layout(legend=UNTITLED_BELOW)


def mirror_course(table: pd.DataFrame) -> go.Figure:
    """How often the largest weight is on the symbol needed, over training."""
    table = table.assign(layer="layer " + table["layer"].astype(str))
    figure = px.line(
        table,
        x="step",
        y="argmax_share",
        color="layer",
        line_group=table["seed"].astype(str) + table["head"].astype(str),
        facet_col="run",
        facet_col_spacing=0.06,
        hover_data=["seed"],
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "argmax_share": "share of queries"},
        title="Outputs that attend the most to the symbol needed (dashed: to any, evenly)",
    )
    chance = table["uniform"].iloc[0]
    figure.add_hline(chance, line_dash="dash", line_color=GREY)
    figure = bare_facets(figure).update_yaxes(range=[-0.03, 1.05])
    return figure.update_layout(legend=UNTITLED_BELOW)
