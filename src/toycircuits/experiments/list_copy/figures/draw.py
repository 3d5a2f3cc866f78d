"""Figures of the list-copy experiments, drawn from their tables.

Pictures of one model show the first in the table, whose run is the one named like the experiment.
Curves show a line for each model, and bars the mean over seeds with their range. A grid is made of
the runs that have variants: a cell is one architecture.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.plotting import COLORS, GREY, LEGEND_BELOW, LOG_AXIS, SEQUENTIAL, bare_facets
from toycircuits.core.tables import MODEL, first_model, mean_and_range, model_number, wilson

GREEN = COLORS[2]
NATS = "cross-entropy (nats)"
ABLATIONS = {
    ("none", "none"): "none",
    ("pattern", "mean"): "mean pattern",
    ("pattern", "uniform"): "uniform pattern",
    ("value", "zero"): "values zeroed",
}
PREDICTIONS = {
    "loss_at_d1": "d1 predicts d2",
    "loss_at_d2": "d2 predicts SEP",
    "loss_at_SEP": "SEP predicts o1",
    "loss_at_o1": "o1 predicts o2",
}
OUTPUTS = {"loss_at_o1": "o1", "loss_at_o2": "o2"}
COLORED_BY = {"sum": "d1 + d2", "d1": "d1", "d2": "d2"}
CELL = ["n_layers", "normalization", "use_bias", "freeze_W_V", "freeze_W_O"]
# Columns of the grid, by (freeze_W_V, freeze_W_O), in the order that published values are given in.
FREEZING = {
    (False, False): "both trained",
    (False, True): "W_O frozen",
    (True, False): "W_V frozen",
    (True, True): "both frozen",
}


Steps = tuple[int, int]


class GridSettings(Settings):
    """How to read the grid of architectures, and what was published of it.

    Attributes:
        solved: accuracy from which a model counts as copying.
        plateau, jumped: ranges of accuracy that models which do not are counted in.
        batches: run -> how it draws its batches; its models with both matrices frozen and without
            biases are compared by that.
        published_accuracy: run -> accuracy of its cells (both trained, W_O frozen, W_V frozen, both
            frozen).
        published_steps: run -> first and last step at which its cells were found solved.
    """

    solved: float = Field(gt=0, le=1)
    plateau: tuple[float, float]
    jumped: tuple[float, float]
    batches: dict[str, str]
    published_accuracy: dict[str, tuple[float, float, float, float]]
    published_steps: dict[str, tuple[Steps, Steps, Steps, Steps]]


class RenderSettings(Settings):
    """What to draw beside the measured values.

    Attributes:
        published_accuracy: accuracies of the original study, one after each of the equal parts of
            the training (its epochs), or null for none.
        grid: how to read the grid of architectures, where the experiment has one.
    """

    published_accuracy: tuple[float, ...] | None = Field(min_length=1)
    grid: GridSettings | None = None


def first_run(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first run in the table."""
    return table[table["run"] == table["run"].iloc[0]]


def curves(training: pd.DataFrame, names: Mapping[str, str], y: str, title: str) -> go.Figure:
    """Columns `names` of the training log over steps: a colour each, a line for each model."""
    table = training.rename(columns=dict(names))
    table["model"] = model_number(table)
    figure = px.line(
        table.melt(["step", "model", "seed"], list(names.values()), "of", y),
        x="step",
        y=y,
        color="of",
        line_dash="of",
        line_group="model",
        hover_data=["seed"],
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "of": ""},
        title=title,
    )
    return figure.update_layout(legend={"x": 0.98, "xanchor": "right", "y": 0.5})


def at_end(training: pd.DataFrame, name: str) -> float:
    """Mean over the models of the last value of a column of the training log."""
    return float(training.groupby(MODEL)[name].last().mean())


def loss(training: pd.DataFrame) -> go.Figure:
    """Training loss and loss over all lists, above the floor."""
    floor, end = training["loss_floor"].iloc[0], at_end(training, "loss")
    title = f"Loss at the end {end:.3f} nats, {end - floor:.3f} above its floor"
    figure = curves(training, {"train_loss": "batch", "loss": "all lists"}, NATS, title)
    figure.add_hline(floor, line_dash="dash", line_color=GREY)
    note = f"floor {floor:.4f} nats: d1 does not tell d2"
    place = {"xref": "paper", "x": 0.01, "xanchor": "left", "yanchor": "top", "showarrow": False}
    figure.add_annotation(text=note, y=floor, font_color=GREY, **place)
    return figure.update_yaxes(rangemode="tozero")


def accuracy(training: pd.DataFrame, settings: RenderSettings) -> go.Figure:
    """Exact-match accuracy over all lists and over sampled ones, with the published course."""
    names = {"accuracy": "all lists", "accuracy_sampled": "sampled lists"}
    title = f"Lists copied exactly at the end: {at_end(training, 'accuracy'):.1%}"
    figure = curves(training, names, "exact-match accuracy", title)
    if settings.published_accuracy is not None:
        values = settings.published_accuracy
        steps = np.linspace(0, training["step"].max(), len(values) + 1)[1:]
        mark = {"color": GREEN, "symbol": "diamond-open", "size": 9}
        figure.add_scatter(x=steps, y=values, mode="markers", marker=mark, name="published")
    return figure.update_yaxes(range=[-0.03, 1.05])


def attention(patterns: pd.DataFrame, subset: str) -> go.Figure:
    """Attention pattern of every head, a heatmap each; cells that the mask forbids are blank."""
    table = first_model(patterns)
    table = table[table["subset"] == subset]
    labels = list(table["query"].unique())
    parts = {
        f"layer {layer}, head {head}": part["weight"].to_numpy().reshape(len(labels), -1)
        for (layer, head), part in table.groupby(["layer", "head"])
    }
    whose = f"list {subset}" if is_one_list(subset) else f"mean over {subset}"
    figure = px.imshow(
        np.stack(list(parts.values())),
        x=labels,
        y=labels,
        facet_col=0,
        facet_col_wrap=3,
        zmin=0,
        zmax=1,
        text_auto=".2f",
        color_continuous_scale=SEQUENTIAL,
        labels={"x": "attended to", "y": "query", "color": "weight"},
        title=f"Attention patterns, {whose}",
    )
    figure.for_each_annotation(
        lambda note: note.update(text=list(parts)[int(note.text.partition("=")[2])])
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, constrain="domain", constraintoward="top")
    return figure.update_layout(height=360)


def is_one_list(subset: str) -> bool:
    """Whether the subset is a single list, named like (8, 3), and not many."""
    return subset.startswith("(")


def named(ablations: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns `ablation` and `where`, the words for what was done."""
    pairs = zip(ablations["component"], ablations["method"], strict=True)
    where = ablations["layer"].astype(str)
    where = where.where(where.isin(["all", "none"]), "layer " + where).replace("all", "all layers")
    return ablations.assign(ablation=[ABLATIONS[pair] for pair in pairs], where=where)


def ablation_bars(ablations: pd.DataFrame) -> go.Figure:
    """Accuracy above loss under each ablation, for the sample and for all lists."""
    table = named(ablations).melt(
        [*MODEL, "subset", "ablation", "where"], ["loss", "accuracy"], "metric", "value"
    )
    stats = mean_and_range(first_run(table), ["metric", "subset", "ablation", "where"], "value")
    none = stats[stats["ablation"] == "none"].set_index(["metric", "subset"])["mean"]
    subsets = list(stats["subset"].unique())
    figure = px.bar(
        stats[stats["ablation"] != "none"],
        x="where",
        y="mean",
        color="ablation",
        barmode="group",
        facet_row="metric",
        facet_col="subset",
        facet_row_spacing=0.08,
        error_y="up",
        error_y_minus="down",
        category_orders={"ablation": list(ABLATIONS.values()), "subset": subsets},
        color_discrete_sequence=COLORS,
        labels={"where": "", "mean": "", "ablation": ""},
        title="Copying under ablation of attention (dashed: no ablation)",
        height=560,
    )
    if stats["up"].max() == stats["down"].max() == 0:  # one seed has no range
        figure.update_traces(error_y_visible=False)
    figure.for_each_annotation(lambda note: note.update(text=_facet(note.text)))
    for row, (metric, label) in enumerate({"accuracy": "accuracy", "loss": NATS}.items(), start=1):
        top = stats.loc[stats["metric"] == metric, "max"].max()
        figure.update_yaxes(matches=None, range=[0, 1.08 * top], row=row)
        figure.update_yaxes(title=label, row=row, col=1)
        for column, subset in enumerate(subsets, start=1):
            level = none[metric, subset]
            figure.add_hline(level, line_dash="dash", line_color=GREY, row=row, col=column)
    return figure.update_layout(legend=LEGEND_BELOW)


def _facet(text: str) -> str:
    """The heading of a facet: none for a metric, which the axis names."""
    kind, _, name = text.partition("=")
    if kind == "metric":
        return ""
    return f"list {name}" if is_one_list(name) else name


def ablation_positions(ablations: pd.DataFrame) -> go.Figure:
    """What each prediction adds to the loss over all lists, under each ablation."""
    subset = ablations["subset"].unique()[-1]
    table = named(ablations[ablations["subset"] == subset])
    columns = [name for name in table.columns if name.startswith("loss_at_")]
    table["case"] = table["ablation"] + ", " + table["where"]
    table.loc[table["ablation"] == "none", "case"] = "none"
    long = table.melt([*MODEL, "case"], columns, "prediction", "part")
    long["part"] /= len(columns)
    names = PREDICTIONS if "loss_at_d1" in columns else OUTPUTS
    long["prediction"] = long["prediction"].replace(names)
    figure = px.bar(
        mean_and_range(first_run(long), ["case", "prediction"], "part"),
        x="mean",
        y="case",
        color="prediction",
        orientation="h",
        color_discrete_sequence=COLORS,
        labels={"mean": f"contribution to the mean {NATS}", "case": "", "prediction": ""},
        title=f"Which predictions an ablation harms ({subset})",
    )
    figure.update_layout(legend_traceorder="normal")
    return figure.update_yaxes(autorange="reversed")


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
        color_discrete_sequence=(COLORS[0], GREY, "#bbbbbb"),
        labels={"mean": "held-out accuracy", "number": "number read", "case": ""},
        title="What a linear probe reads from the separator (dashed: chance)",
    )
    bare_facets(figure)
    figure.add_hline(table["chance"].iloc[0], line_dash="dash", line_color=GREY)
    return figure.update_yaxes(range=[0, 1.05])


def copying_loss(training: pd.DataFrame) -> go.Figure:
    """Loss of the batch and of validation over the training of the first run."""
    own = first_run(training)
    title = f"Validation loss at the end: {at_end(own, 'loss'):.3g} nats"
    names = {"train_loss": "batch", "loss": "validation"}
    figure = curves(own, names, NATS, title).update_yaxes(**LOG_AXIS)
    return figure.update_layout(legend={"y": 0.98})


def copying_accuracy(training: pd.DataFrame) -> go.Figure:
    """Shares of outputs and of whole lists that are right, over the training of the first run."""
    own = first_run(training)
    names = {"accuracy": "outputs right", "accuracy_lists": "lists right"}
    title = f"Outputs right at the end: {at_end(own, 'accuracy'):.2%} (validation lists)"
    figure = curves(own, names, "accuracy (validation)", title)
    return figure.update_yaxes(range=[-0.03, 1.05])


def batch_orders(training: pd.DataFrame) -> go.Figure:
    """Validation accuracy and loss of the runs without variants, which differ in batch order."""
    own = training[training["variant"] == ""]
    names = {"accuracy": "accuracy", "loss": NATS}
    table = own.rename(columns=names).melt([*MODEL, "step"], list(names.values()), "of", "value")
    figure = px.line(
        table,
        x="step",
        y="value",
        color="run",
        line_dash="run",
        line_group="seed",
        facet_row="of",
        facet_row_spacing=0.06,
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "value": "", "run": ""},
        title="Validation with the first epoch's batches for ever, and new ones (ends when solved)",
        height=560,
    )
    figure.for_each_annotation(lambda note: note.update(text=""))
    figure.update_yaxes(matches=None)
    figure.update_yaxes(title="accuracy", row=2)
    figure.update_yaxes(title=NATS, **LOG_AXIS, row=1)
    return figure.update_layout(legend=LEGEND_BELOW)


def weight_ranges(ranges: pd.DataFrame) -> go.Figure:
    """How the attention of the first model varies, by the weight on each query's first key."""
    table = first_model(ranges).drop_duplicates(["layer", "head", "query"])
    figure = go.Figure()
    for (query, key), part in table.groupby(["query", "key"], sort=False):
        figure.add_box(
            x="layer " + part["layer"].astype(str),
            lowerfence=part["min"],
            q1=part["q05"],
            median=part["median"],
            q3=part["q95"],
            upperfence=part["max"],
            name=f"{query} to {key}",
        )
    figure.update_layout(
        title="Attention over the validation lists (line: median, box: 90% of them, whiskers: all)",
        boxmode="group",
        showlegend=True,
    )
    return figure.update_yaxes(title="attention weight", range=[-0.03, 1.03])


def outcomes(models: pd.DataFrame, keys: list[str], grid: GridSettings) -> pd.DataFrame:
    """Models of each group counted by where their final accuracy lies; a row a group.

    `rate` is the share of solved ones, with its 95% interval; `step` their median last step;
    `jump_step` the median over those counted as jumped.
    """
    rows = []
    for group, part in models.groupby(keys, sort=False):
        accuracy = part["accuracy"]
        solved, jumped = accuracy >= grid.solved, accuracy.between(*grid.jumped)
        low, high = wilson(int(solved.sum()), len(part))
        rows.append(
            {
                **dict(zip(keys, group, strict=True)),
                **{"models": len(part), "solved": int(solved.sum())},
                **{"rate": solved.mean(), "rate_low": low, "rate_high": high},
                "on_plateau": int(accuracy.between(*grid.plateau).sum()),
                "jumped": int(jumped.sum()),
                **{"accuracy": accuracy.mean(), "lowest": accuracy.min()},
                **{"highest": accuracy.max(), "step": part.loc[solved, "step"].median()},
                "jump_step": part.loc[jumped, "jump_step"].median(),
            }
        )
    return pd.DataFrame(rows)


def of_grid(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the runs that freeze matrices in all four ways."""
    way = 2 * table["freeze_W_V"].astype(int) + table["freeze_W_O"].astype(int)
    return table[way.groupby(table["run"]).transform("nunique") == len(FREEZING)]


def grid_cells(models: pd.DataFrame, grid: GridSettings) -> pd.DataFrame:
    """One row a cell of the grid: what was measured, with the published values beside it."""
    own = of_grid(models).sort_values(CELL, key=_published_order, kind="stable")
    table = outcomes(own, ["run", *CELL], grid)
    column = [list(FREEZING).index(pair) for pair in _freezing(table)]
    places = list(zip(table["run"], column, strict=True))
    unknown, nothing = (np.nan,) * 4, ((np.nan, np.nan),) * 4
    accuracy = [grid.published_accuracy.get(run, unknown)[i] for run, i in places]
    steps = [grid.published_steps.get(run, nothing)[i] for run, i in places]
    table["published_accuracy"] = accuracy
    table[["published_step_from", "published_step_to"]] = np.array(steps, dtype=float)
    return table


def _published_order(column: pd.Series) -> pd.Series:
    return column == "LN" if column.name == "normalization" else column


def _freezing(table: pd.DataFrame) -> list[tuple[bool, bool]]:
    flags = zip(table["freeze_W_V"], table["freeze_W_O"], strict=True)
    return [(bool(value), bool(output)) for value, output in flags]


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table in the published order, with the words for a cell of the grid.

    `depth`, `kind` and, of both, `shape` name its row, `freezing` its column.
    """
    table = table.sort_values(CELL, key=_published_order, kind="stable")
    norm = table["normalization"].where(table["normalization"] == "LN", "no LN")
    kind = norm + ", " + table["use_bias"].map({True: "bias", False: "no bias"})
    depth = table["n_layers"].astype(str) + " layers"
    freezing = [FREEZING[pair] for pair in _freezing(table)]
    return table.assign(depth=depth, kind=kind, shape=depth + ", " + kind, freezing=freezing)


def pivoted(cells: pd.DataFrame, values: str) -> pd.DataFrame:
    """Column `values` of the cells as rows of shapes and columns of freezing."""
    wide = cells.pivot(index="shape", columns="freezing", values=values)
    return wide.loc[cells["shape"].unique(), list(FREEZING.values())]


def cell_text(cell: pd.Series, grid: GridSettings) -> str:
    """What the grid's table says of a cell: accuracy or when it was solved; and as published."""
    if cell["solved"] == cell["models"]:
        text = f"≥ {grid.solved:g}, step {cell['step']:.0f}"
    elif cell["models"] == 1:
        text = f"{cell['accuracy']:.4f}"
    else:
        text = f"{cell['lowest']:.3f} to {cell['highest']:.3f}"
        text += f", {cell['solved']} solved" if cell["solved"] else ""
    first, last = cell["published_step_from"], cell["published_step_to"]
    if cell["published_accuracy"] == cell["published_accuracy"]:
        return f"{text}<br><i>{cell['published_accuracy']:.4f}</i>"
    if first == first:
        steps = f"{first:.0f}" if first == last else f"{first:.0f} to {last:.0f}"
        return f"{text}<br><i>≥ {grid.solved:g}, step {steps}</i>"
    return text


def grid_table(cells: pd.DataFrame, grid: GridSettings) -> go.Figure:
    """The grid in words: measured, and below it in italics what was published."""
    table = labelled(cells)
    table["text"] = [cell_text(cell, grid) for _, cell in table.iterrows()]
    wide = pivoted(table, "text")
    published = table["text"].str.contains("<i>").any()
    height = 48 if published else 26  # pixels of a row: two lines or one
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
        pivoted(labelled(cells), "accuracy"),
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
    """Accuracy over steps in every cell: a line a model, a row for each depth."""
    table = labelled(of_grid(architecture)).merge(training, on=MODEL)
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
    table = labelled(of_grid(architecture)).merge(shares, on=MODEL)
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


def drawn_otherwise(table: pd.DataFrame, grid: GridSettings) -> pd.DataFrame:
    """Models of one architecture, without and with LayerNorm, by how their batches are drawn.

    Columns `batches` and `norm` are added; rows are in the order of `grid.batches`.
    """
    frozen = table["freeze_W_V"] & table["freeze_W_O"] & ~table["use_bias"]
    own = table[frozen & table["run"].isin(grid.batches)]
    norm = own["normalization"].where(own["normalization"] == "LN", "no LN")
    places = {run: place for place, run in enumerate(grid.batches)}
    table = own.assign(
        batches=own["run"].map(grid.batches), norm=norm, place=own["run"].map(places)
    )
    return table.sort_values(["norm", "place"], ascending=[False, True], kind="stable")


def batches(training: pd.DataFrame, architecture: pd.DataFrame, grid: GridSettings) -> go.Figure:
    """Accuracy over steps of two-layer models whose batches are drawn in different ways."""
    table = drawn_otherwise(architecture, grid).merge(training, on=MODEL)
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


def largest_drop(values: "pd.Series[float]") -> float:
    """How far a course falls, at most, below the highest value that it has had.

    >>> largest_drop(pd.Series([0.25, 1.0, 0.5, 0.75])), largest_drop(pd.Series([0.25, 0.5, 1.0]))
    (0.5, 0.0)
    """
    return float((values.cummax() - values).max())


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Final loss and accuracy of every model; of a grid also each cell, and each batch order.

    `largest_drop`: the most that a model's accuracy ever was below its best one before.
    `jump_step`: the first at which it was seen in the range of those that jumped, or above.
    """
    log = tables["training"].groupby(MODEL)
    models = log.last().assign(largest_drop=log["accuracy"].agg(largest_drop))
    if settings.grid is None:
        return {"models": models.reset_index()}
    above = tables["training"]["accuracy"] >= settings.grid.jumped[0]
    models["jump_step"] = tables["training"][above].groupby(MODEL)["step"].first()
    models = models.reset_index().merge(tables["architecture"], on=MODEL)
    plain = models[models["variant"] == ""]
    return {
        "models": models,
        "grid": grid_cells(models, settings.grid),
        "batch_orders": outcomes(plain, ["run"], settings.grid),
        "batches": outcomes(
            drawn_otherwise(models, settings.grid), ["norm", "batches"], settings.grid
        ),
    }


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name."""
    ablations, patterns = tables["ablations"], tables["patterns"]
    sample, everything = patterns["subset"].unique()
    figures = {
        "attention_sample": attention(patterns, sample),
        "attention_mean": attention(patterns, everything),
        "ablations": ablation_bars(ablations),
        "ablation_positions": ablation_positions(ablations),
    }
    figures |= draw_in_place(tables) if "outcomes" in tables else draw_next_token(tables, settings)
    return figures if settings.grid is None else figures | draw_grid(tables, settings.grid)


def draw_next_token(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, go.Figure]:
    """The figures of the layout `next_token` alone."""
    training = tables["training"]
    figures = {
        "loss": loss(training),
        "accuracy": accuracy(training, settings),
        "explained_variance": explained_variance(tables["pca_variance"]),
        "probes": probes(tables["probes"]),
    }
    scatters = {f"pca_{by}": pca(tables["pca"], tables["pca_variance"], by) for by in COLORED_BY}
    return figures | scatters


def draw_in_place(tables: Mapping[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """The figures of the layout `in_place` alone, of the runs without variants."""
    return {
        "loss": copying_loss(tables["training"]),
        "accuracy": copying_accuracy(tables["training"]),
        "batch_orders": batch_orders(tables["training"]),
        "attention_ranges": weight_ranges(tables["pattern_ranges"]),
    }


def draw_grid(tables: Mapping[str, pd.DataFrame], grid: GridSettings) -> dict[str, go.Figure]:
    """The figures of the grid's cells."""
    cells, architecture = tables["grid"], tables["architecture"]
    return {
        "grid_table": grid_table(cells, grid),
        "grid_accuracy": grid_accuracy(cells),
        "grid_curves": grid_curves(tables["training"], architecture),
        "grid_outputs": grid_outputs(tables["outcomes"], architecture),
        "batches": batches(tables["training"], architecture, grid),
    }
