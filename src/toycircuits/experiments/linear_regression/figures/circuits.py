"""Heatmaps of QK and OV."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import DIVERGING
from toycircuits.core.tables import first_seeds
from toycircuits.experiments.linear_regression.figures.labels import COLUMNS, with_layer

CELL = 150  # pixels of a heatmap's side


def matrix(table: pd.DataFrame) -> np.ndarray:
    """The matrix that the columns row, col and value hold."""
    return table.pivot(index="row", columns="col", values="value").to_numpy()


def split_axes(figure: go.Figure, shape: tuple[int, int], row: int, col: int) -> None:
    """Mark the entries of x and of y along a heatmap of `shape`, with a line between them."""
    for size, axis in zip(shape, "yx", strict=True):
        if size == 1:
            continue
        ends = {"x0": -0.5, "x1": shape[1] - 0.5, "y0": -0.5, "y1": shape[0] - 0.5}
        ends |= {f"{axis}0": size - 1.5, f"{axis}1": size - 1.5}
        line = {"color": "black", "width": 1.5}
        figure.add_shape(type="line", line=line, row=row, col=col, **ends)
        update = figure.update_xaxes if axis == "x" else figure.update_yaxes
        update(tickvals=[(size - 2) / 2, size - 1], ticktext=["x", "y"], row=row, col=col)


def symmetric(table: pd.DataFrame, by: list[str], name: str, **place: object) -> dict[str, object]:
    """A colour axis that is symmetric about zero.

    Colours end at three times the usual size of a matrix's largest entry, so that a single large
    matrix does not leave the others white.

    Args:
        by: the columns that tell the matrices apart.
        name: title of the colour bar.
        place: where the colour bar is.
    """
    largest = table["value"].abs().groupby([table[column] for column in by]).max()
    limit = min(float(largest.max()), 3 * float(largest.median())) or 1.0
    bar = {"title": name, **place}
    if limit < largest.max():
        ends = {"tickvals": [-limit, 0, limit]}
        bar |= ends | {"ticktext": [f"≤ {-limit:.2g}", "0", f"≥ {limit:.2g}"]}
    return {"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": bar}


def circuits(qk: pd.DataFrame, ov: pd.DataFrame) -> go.Figure:
    """QK and, under it, OV transposed, of every head: both have the key's entries as columns."""
    qk, ov = (with_layer(first_seeds(table)) for table in (qk, ov))
    qk = qk[qk["step"] == qk["step"].max()]
    heads = list(ov[["label", "head"]].drop_duplicates().itertuples(index=False, name=None))
    columns = min(COLUMNS, len(heads))
    bands = -(-len(heads) // columns)
    size, out = int(qk["row"].max()) + 1, int(ov["col"].max()) + 1
    height = bands * (CELL * (size + out) / size + 110)
    figure = make_subplots(
        2 * bands,
        columns,
        row_heights=[size, out] * bands,
        subplot_titles=[" "] * (2 * bands * columns),
        vertical_spacing=55 / height,
        horizontal_spacing=0.2 / columns,
    )
    several = ov["label"].nunique() > 1
    for index, (label, head) in enumerate(heads):
        row, col = 2 * (index // columns) + 1, index % columns + 1
        name = f"{label}<br>head {head}" if several else f"head {head}"
        figure.layout.annotations[(row - 1) * columns + col - 1].text = name
        qk_of_head, ov_of_head = (
            matrix(table[(table["label"] == label) & (table["head"] == head)]) for table in (qk, ov)
        )
        _draw_circuit(figure, qk_of_head, size, row, col, "coloraxis")
        _draw_circuit(figure, ov_of_head.T, out, row + 1, col, "coloraxis2")
    _name_axes(figure, bands)
    return figure.update_layout(
        title="QK and OV of every head (a query's y is 0)",
        coloraxis=symmetric(qk, ["label", "head"], "QK", len=0.5, y=1, yanchor="top"),
        coloraxis2=symmetric(ov, ["label", "head"], "OV", len=0.5, y=0, yanchor="bottom"),
        width=max(520, columns * (CELL + 40) + 200),
        height=height + 120,
        margin_t=100,
    )


def _draw_circuit(
    figure: go.Figure, values: np.ndarray, n_rows: int, row: int, col: int, coloraxis: str
) -> None:
    """A heatmap on axes with room for `n_rows`: a stack's last layer writes one number alone."""
    place = {"row": row, "col": col}
    figure.add_heatmap(z=values, coloraxis=coloraxis, **place)
    split_axes(figure, (values.shape[0], values.shape[1]), **place)
    figure.update_yaxes(range=[n_rows - 0.5, -0.5], **place)
    if values.shape[0] == 1:
        figure.update_yaxes(showticklabels=False, ticks="", **place)


def _name_axes(figure: go.Figure, bands: int) -> None:
    for row in range(1, 2 * bands + 1):
        title = "OV<sup>T</sup>" if row % 2 == 0 else "QK: query"
        figure.update_yaxes(title=title, row=row, col=1)
        if row % 2 == 0:
            figure.update_xaxes(showticklabels=False, ticks="", row=row)
        else:
            figure.update_xaxes(title={"text": "key", "standoff": 0}, row=row)
    figure.update_xaxes(showgrid=False, showline=False)
    figure.update_yaxes(showgrid=False, showline=False)


def qk_evolution(qk: pd.DataFrame) -> go.Figure:
    """QK of every head at the steps of the table: a row a head, a column a step."""
    table = first_seeds(qk)
    steps, heads = table["step"].unique(), table["head"].unique()
    figure = make_subplots(
        len(heads),
        len(steps),
        column_titles=[f"step {step:,}" for step in steps],
        row_titles=[f"head {head}" for head in heads],
        vertical_spacing=0.15 / len(heads),
        horizontal_spacing=0.15 / len(steps),
    )
    for row, head in enumerate(heads, start=1):
        for col, step in enumerate(steps, start=1):
            values = matrix(table[(table["head"] == head) & (table["step"] == step)])
            figure.add_heatmap(z=values, coloraxis="coloraxis", row=row, col=col)
            split_axes(figure, (values.shape[0], values.shape[1]), row, col)
    figure.update_xaxes(showgrid=False, showline=False, showticklabels=False, ticks="")
    figure.update_xaxes(showticklabels=True, ticks="outside", title="key", row=len(heads))
    figure.update_yaxes(showgrid=False, showline=False, autorange="reversed")
    figure.update_yaxes(title="query", col=1)
    return figure.update_layout(
        title="QK over training (row: query, column: key; the query's y is always 0)",
        coloraxis=symmetric(table, ["step", "head"], "QK"),
        width=len(steps) * (CELL + 30) + 200,
        height=len(heads) * CELL + 160,
    )
