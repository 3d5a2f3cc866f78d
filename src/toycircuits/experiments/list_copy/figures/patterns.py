"""Figures of attention: heatmaps of patterns, and how weights vary over the lists."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import SEQUENTIAL
from toycircuits.core.tables import first_model


def is_one_list(subset: str) -> bool:
    """Whether the subset is a single list, such as "(8, 3)", and not many lists."""
    return subset.startswith("(")


def attention(patterns: pd.DataFrame, subset: str) -> go.Figure:
    """Attention pattern of every head, a heatmap each; cells that the mask forbids are blank."""
    table = first_model(patterns)
    table = table[table["subset"] == subset]
    labels = list(table["query"].unique())
    heads = {
        f"layer {layer}, head {head}": cells["weight"].to_numpy().reshape(len(labels), -1)
        for (layer, head), cells in table.groupby(["layer", "head"])
    }
    title = f"list {subset}" if is_one_list(subset) else f"mean over {subset}"
    figure = px.imshow(
        np.stack(list(heads.values())),
        x=labels,
        y=labels,
        facet_col=0,
        facet_col_wrap=3,
        zmin=0,
        zmax=1,
        text_auto=".2f",
        color_continuous_scale=SEQUENTIAL,
        labels={"x": "attended to", "y": "query", "color": "weight"},
        title=f"Attention patterns, {title}",
    )
    figure.for_each_annotation(
        lambda note: note.update(text=list(heads)[int(note.text.partition("=")[2])])
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, constrain="domain", constraintoward="top")
    return figure.update_layout(height=360)


def weight_ranges(ranges: pd.DataFrame) -> go.Figure:
    """How the attention of the first model varies, by the weight on each query's first key."""
    table = first_model(ranges).drop_duplicates(["layer", "head", "query"])
    figure = go.Figure()
    for (query, key), weights in table.groupby(["query", "key"], sort=False):
        figure.add_box(
            x="layer " + weights["layer"].astype(str),
            lowerfence=weights["min"],
            q1=weights["q05"],
            median=weights["median"],
            q3=weights["q95"],
            upperfence=weights["max"],
            name=f"{query} to {key}",
        )
    figure.update_layout(
        title="Attention over the validation lists (line: median, box: 90% of them, whiskers: all)",
        boxmode="group",
        showlegend=True,
    )
    return figure.update_yaxes(title="attention weight", range=[-0.03, 1.03])
