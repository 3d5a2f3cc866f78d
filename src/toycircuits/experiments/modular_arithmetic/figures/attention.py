"""What "=" attends to."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import SEQUENTIAL
from toycircuits.experiments.modular_arithmetic.figures.heatmap import matrix


def attention_means(attention: pd.DataFrame) -> go.Figure:
    """Attention from "=" to each position, per head: mean over all pairs, and one example."""
    long = attention.melt(["head", "key"], ["mean", "example"], "over", "attention")
    long["over"] = long["over"].map({"mean": "mean over all pairs", "example": "one example"})
    labels = {"key": "attended to", "attention": "attention weight"}
    title = 'Attention from "=", per head'
    figure = px.bar(
        long,
        x="key",
        y="attention",
        color="over",
        facet_col="head",
        barmode="group",
        title=title,
        labels=labels,
        range_y=[0, 1],
    )
    return head_facets(figure).update_layout(legend_title_text="")


def attention_maps(table: pd.DataFrame) -> go.Figure:
    """Attention from "=" to a, for each head, over all pairs."""
    heads = sorted(table["head"].unique())
    cube = np.stack([matrix(table[table["head"] == head], ("head", "a")) for head in heads])
    figure = px.imshow(
        cube,
        facet_col=0,
        facet_col_wrap=2,
        zmin=0,
        zmax=1,
        color_continuous_scale=SEQUENTIAL,
        labels={"x": "b", "y": "a", "color": "attention", "facet_col": "head"},
        title='Attention from "=" to a, over all pairs',
    )
    return head_facets(figure).update_layout(height=720, width=760)


def head_facets(figure: go.Figure) -> go.Figure:
    """Facet headings in words: "head 0" for "head=0"."""
    figure.for_each_annotation(lambda note: note.update(text=note.text.replace("=", " ")))
    return figure
