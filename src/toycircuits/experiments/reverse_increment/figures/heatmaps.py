"""Grids of heatmaps that share their colours, their axes and the marks on their cells."""

from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import SEQUENTIAL

LABELS = {
    **{"symbol": "output y<sub>i</sub>", "key": "symbol x<sub>j</sub>", "weight": "weight"},
    **{"token": "symbol", "cosine": "cosine", "dimension": "dimension", "value": "value"},
    **{"target": "symbol due", "read": "symbol read", "mean": "share"},
}
PANEL, GAP = 170, 50  # height of a heatmap and space between two, in pixels
MARGIN = {"t": 100, "b": 60}
DOT = {"color": "white", "size": 6, "line": {"color": "black", "width": 1}}
CROSS = {"symbol": "x-thin", "size": 7, "line": {"color": "black", "width": 1.5}}
MARKS = {"marked": DOT, "crossed": CROSS}  # column of booleans -> mark on its cells


def heatmaps(
    table: pd.DataFrame,
    grid: tuple[str, str],
    cell: tuple[str, str, str],
    title: str,
    text: str | None = None,
    **options: Any,
) -> go.Figure:
    """A heatmap for each value of the columns `grid` (down, across), all in the same colours.

    Cells get a dot where the table's column `marked` holds, and a cross where `crossed` holds, if
    the table has these columns.

    Args:
        cell: the columns that give a value's place down, its place across, and the value.
        text: format of the numbers written in the cells, or None for none.
        options: of the colour axis.
    """
    down, across = (list(table[name].unique()) for name in grid)
    inner = PANEL * len(down) + GAP * (len(down) - 1)
    space = {"vertical_spacing": GAP / inner, "horizontal_spacing": 0.1 / len(across)}
    headings = [f"{a}<br>{d}" for d, a in product(down, across)]
    figure = make_subplots(len(down), len(across), subplot_titles=headings, **space)
    for (row, d), (column, a) in product(enumerate(down, start=1), enumerate(across, start=1)):
        panel = table[(table[grid[0]] == d) & (table[grid[1]] == a)]
        _add_panel(figure, panel, cell, text, {"row": row, "col": column})
    figure.update_annotations(font_size=12).update_traces(showlegend=False)
    _label_axes(figure, cell, len(down))
    colors = {"colorscale": SEQUENTIAL, "colorbar_title": LABELS[cell[2]]} | options
    figure.update_coloraxes(**colors)
    return figure.update_layout(title=title, height=inner + sum(MARGIN.values()), margin=MARGIN)


def _add_panel(
    figure: go.Figure,
    panel: pd.DataFrame,
    cell: tuple[str, str, str],
    text: str | None,
    place: dict[str, int],
) -> None:
    """Add one heatmap with its marks to the subplot at `place`."""
    y, x, value = cell
    values = panel.pivot(index=y, columns=x, values=value)
    heat = go.Heatmap(z=values.to_numpy(), x=values.columns, y=values.index, coloraxis="coloraxis")
    figure.add_trace(heat.update(texttemplate=text), **place)
    for column, mark in MARKS.items():
        if column in panel:
            marked = panel[panel[column]]
            figure.add_scatter(x=marked[x], y=marked[y], mode="markers", marker=mark, **place)


def _label_axes(figure: go.Figure, cell: tuple[str, str, str], n_down: int) -> None:
    """Give titles and tick labels to the outer axes alone, and let rows run downwards."""
    y, x, _ = cell
    axis = {"showgrid": False, "dtick": 1, "tickfont_size": 11, "showticklabels": False}
    figure.update_xaxes(**axis).update_yaxes(**axis, autorange="reversed")
    figure.update_xaxes(title=LABELS[x], title_font_size=13, showticklabels=True, row=n_down)
    figure.update_yaxes(title=LABELS[y], title_font_size=13, showticklabels=True, col=1)
