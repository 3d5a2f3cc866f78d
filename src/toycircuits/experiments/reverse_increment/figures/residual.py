"""Figures of the residual stream: cosines with the embeddings, MLP outputs, symbols read."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from toycircuits.core.plotting import DIVERGING
from toycircuits.core.tables import first_seeds, mean_and_range
from toycircuits.experiments.reverse_increment.figures.heatmaps import heatmaps


def similarity(table: pd.DataFrame) -> go.Figure:
    """Cosines of the last residual stream with the embeddings, for the samples."""
    table = first_seeds(table)
    table = table.assign(
        string=table["string"].str.replace(" ", ""),
        marked=table["token"] == table["target"],
        crossed=table["token"] == table["read"],
    )
    title = "Last residual stream against the embeddings (dots: the answer, crosses: the nearest)"
    return by_string(table, ("symbol", "token", "cosine"), title, cmin=-1, cmax=1)


def mlp_output(table: pd.DataFrame) -> go.Figure:
    """What the first layer's MLP adds at the outputs, for the samples."""
    table = first_seeds(table)
    table = table.assign(string=table["string"].str.replace(" ", ""))
    limit = float(table["value"].abs().max())
    title = "Output of the layer-0 MLP where the answer is predicted"
    return by_string(table, ("symbol", "dimension", "value"), title, cmin=-limit, cmax=limit)


def by_string(
    table: pd.DataFrame, cell: tuple[str, str, str], title: str, **options: Any
) -> go.Figure:
    """Heatmaps of the samples, a row for each run: each run has samples of its own."""
    number = table.groupby("run")["string"].transform(lambda strings: pd.factorize(strings)[0])
    table = table.assign(number=number)
    figure = heatmaps(table, ("run", "number"), cell, title, colorscale=DIVERGING, **options)
    headings = table.drop_duplicates(["run", "number"])
    names = headings["string"] + "<br>" + headings["run"]
    for note, name in zip(figure.layout.annotations, names, strict=False):
        note.text = name
    return figure


def confusion(table: pd.DataFrame) -> go.Figure:
    """Symbols read against symbols due, mean over seeds."""
    stats = mean_and_range(table, ["run", "case", "target", "read"], "share")
    title = "Symbols read at the outputs against symbols due (held out, mean over seeds)"
    cell = ("target", "read", "mean")
    return heatmaps(stats, ("run", "case"), cell, title, "%{z:.2f}", cmin=0, cmax=1)
