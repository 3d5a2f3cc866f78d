"""Figures of the grid of architectures, and of the ways to draw batches."""

from collections.abc import Mapping

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, LEGEND_BELOW, SEQUENTIAL, Drawing, bare_facets
from toycircuits.core.tables import MODEL
from toycircuits.experiments.list_copy.figures.cells import (
    FREEZING,
    GridSettings,
    batch_models,
    grid_models,
    in_words,
)


def draw_grid(tables: Mapping[str, pd.DataFrame], grid: GridSettings) -> dict[str, Drawing]:
    """The figures of the grid's cells, by name, and of the ways to draw batches.

    There are cells if a run freezes the matrices in all ways. Two tables tell it: `architecture`,
    and the summary `grid`.
    """
    telling = [tables[name] for name in ("architecture", "grid") if name in tables]
    has_cells = bool(telling) and not grid_models(telling[0]).empty
    return (draw_cells(tables, grid) if has_cells else {}) | {
        "batches": Drawing(
            lambda: batches(tables["training"], tables["architecture"], grid), over_training=True
        )
    }


def draw_cells(tables: Mapping[str, pd.DataFrame], grid: GridSettings) -> dict[str, Drawing]:
    """The figures of the grid's cells, by name."""
    return {
        "grid_table": Drawing(lambda: grid_table(tables["grid"], grid)),
        "grid_accuracy": Drawing(lambda: grid_accuracy(tables["grid"])),
        "grid_curves": Drawing(
            lambda: grid_curves(tables["training"], tables["architecture"]), over_training=True
        ),
        "grid_outputs": Drawing(lambda: grid_outputs(tables["outcomes"], tables["architecture"])),
    }


def pivoted(cells: pd.DataFrame, values: str) -> pd.DataFrame:
    """Column `values` of the cells as a table: a row for each shape, a column for each freezing."""
    wide = cells.pivot(index="shape", columns="freezing", values=values)
    return wide.loc[cells["shape"].unique(), list(FREEZING.values())]


def cell_text(cell: pd.Series, grid: GridSettings) -> str:
    """What a cell shows: its accuracy, or the step of its solution; below it the published one."""
    if cell["solved"] == cell["models"]:
        text = f"≥ {grid.solved:g}, step {cell['step']:.0f}"
    elif cell["models"] == 1:
        text = f"{cell['accuracy']:.4f}"
    else:
        text = f"{cell['lowest']:.3f} to {cell['highest']:.3f}"
        text += f", {cell['solved']} solved" if cell["solved"] else ""
    published = published_text(cell, grid)
    return f"{text}<br><i>{published}</i>" if published else text


def published_text(cell: pd.Series, grid: GridSettings) -> str:
    """The published accuracy of a cell, or the published steps; empty if there is neither."""
    if pd.notna(cell["published_accuracy"]):
        return f"{cell['published_accuracy']:.4f}"
    first, last = cell["published_step_from"], cell["published_step_to"]
    if pd.isna(first):
        return ""
    steps = f"{first:.0f}" if first == last else f"{first:.0f} to {last:.0f}"
    return f"≥ {grid.solved:g}, step {steps}"


def grid_table(cells: pd.DataFrame, grid: GridSettings) -> go.Figure:
    """The grid in words: measured values, and below them in italics the published ones."""
    table = in_words(cells)
    table["text"] = [cell_text(cell, grid) for _, cell in table.iterrows()]
    wide = pivoted(table, "text")
    published = table["text"].str.contains("<i>").any()
    height = 48 if published else 26  # pixels of a row of two lines, or of one line
    header = {"values": ["", *wide.columns], "align": "left", "fill_color": "#e6e6e6"}
    values = [list(wide.index), *(list(wide[name]) for name in wide.columns)]
    body = {"values": values, "align": "left", "fill_color": "white", "height": height}
    figure = go.Figure(go.Table(header=header, cells=body, columnwidth=[1.3, 1, 1, 1, 1]))
    figure.update_traces(header_font_size=13, cells_font_size=13, cells_line_color="#cccccc")
    note = " (italics: published)" if published else ""
    return figure.update_layout(
        title=f"Validation accuracy at the end, by architecture{note}",
        width=1100,
        height=110 + height * len(wide),
        margin={"l": 10, "r": 10, "b": 10},
    )


def grid_accuracy(cells: pd.DataFrame) -> go.Figure:
    """The grid as a heatmap of accuracies, means over seeds."""
    figure = px.imshow(
        pivoted(in_words(cells), "accuracy"),
        zmin=0,
        zmax=1,
        aspect="auto",
        text_auto=".3f",
        color_continuous_scale=SEQUENTIAL,
        labels={"x": "", "y": "", "color": "accuracy"},
        title="Validation accuracy at the end, mean over seeds",
    )
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def grid_curves(training: pd.DataFrame, architecture: pd.DataFrame) -> go.Figure:
    """Accuracy over steps in every cell: a line for each model, a row for each depth."""
    table = in_words(grid_models(architecture)).merge(training, on=MODEL)
    figure = px.line(
        table,
        x="step",
        y="accuracy",
        color="kind",
        line_dash="kind",
        line_group="seed",
        facet_row="depth",
        facet_col="freezing",
        facet_row_spacing=0.16,
        facet_col_spacing=0.04,
        category_orders={"freezing": list(FREEZING.values())},
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "accuracy": "validation accuracy", "kind": ""},
        title="Validation accuracy over training, by architecture",
        width=1000,
        height=600,
    )
    figure.update_traces(line_width=1.2)
    figure.update_xaxes(matches=None, showticklabels=True, nticks=4)
    for row, depth in enumerate(reversed(table["depth"].unique()), start=1):  # from below
        last = table.loc[table["depth"] == depth, "step"].max()
        figure.update_xaxes(range=[0, 1.03 * last], row=row)
    return bare_facets(figure)


def grid_outputs(shares: pd.DataFrame, architecture: pd.DataFrame) -> go.Figure:
    """What the models of every cell write for a list of two different numbers."""
    table = in_words(grid_models(architecture)).merge(shares, on=MODEL)
    mean = table.groupby(["shape", "freezing", "outcome"], sort=False)["share"].mean()
    figure = px.bar(
        mean.reset_index(),
        x="share",
        y="shape",
        color="outcome",
        facet_col="freezing",
        orientation="h",
        category_orders={
            "freezing": list(FREEZING.values()),
            "shape": list(table["shape"].unique()),
        },
        color_discrete_sequence=(*COLORS[:4], "#bbbbbb"),
        pattern_shape="outcome",
        pattern_shape_sequence=("", "/", "", ".", ""),
        labels={"share": "share of lists", "shape": "", "outcome": "written for d1 d2"},
        title="What is written for validation lists of two different numbers",
        width=1000,
    )
    figure.update_traces(marker_pattern={"fillmode": "overlay", "solidity": 0.12})
    return bare_facets(figure).update_xaxes(tickvals=[0, 0.5, 1])


def batches(training: pd.DataFrame, architecture: pd.DataFrame, grid: GridSettings) -> go.Figure:
    """Accuracy over steps of two-layer models whose batches are drawn in different ways."""
    table = batch_models(architecture, grid).merge(training, on=MODEL)
    figure = px.line(
        table,
        x="step",
        y="accuracy",
        color="batches",
        line_dash="batches",
        line_group="seed",
        facet_col="norm",
        category_orders={"batches": list(dict.fromkeys(grid.batches.values()))},
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "accuracy": "validation accuracy", "batches": ""},
        title="Two layers, both matrices frozen: do size and order of the batches matter?",
        width=1000,
    )
    figure.update_traces(line_width=1.4)
    figure.update_yaxes(range=[-0.03, 1.05])
    return bare_facets(figure).update_layout(legend=LEGEND_BELOW)
