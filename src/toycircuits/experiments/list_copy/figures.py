"""Figures of the list-copy experiments, drawn from their tables.

Pictures of one model show the first in the table. Curves show a line for each model, and bars the
mean over seeds with their range.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from pydantic import Field

from toycircuits.config import Settings
from toycircuits.plotting import COLORS, SEQUENTIAL

MODEL = ["run", "variant", "seed"]  # the columns that tell models apart
GREEN, GREY = COLORS[2], "#777777"
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
COLORED_BY = {"sum": "d1 + d2", "d1": "d1", "d2": "d2"}


class RenderSettings(Settings):
    """What to draw beside the measured values.

    Attributes:
        published_accuracy: accuracies of the original study, one after each of the equal parts of
            the training (its epochs), or null for none.
    """

    published_accuracy: tuple[float, ...] | None = Field(min_length=1)


def first_model(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first model in the table."""
    return table[table.groupby(MODEL, dropna=False, sort=False).ngroup() == 0]


def over_seeds(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Mean of `value` over the seeds of the first run, and how far it reaches up and down."""
    own = table[table["run"] == table["run"].iloc[0]]
    stats = own.groupby(keys, sort=False)[value].agg(["mean", "min", "max"]).reset_index()
    stats["up"], stats["down"] = stats["max"] - stats["mean"], stats["mean"] - stats["min"]
    return stats


def curves(training: pd.DataFrame, names: Mapping[str, str], y: str, title: str) -> go.Figure:
    """Columns `names` of the training log over steps: a colour each, a line for each model."""
    table = training.rename(columns=dict(names))
    table["model"] = table.groupby(MODEL, dropna=False, sort=False).ngroup()
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
    return float(training.groupby(MODEL, dropna=False)[name].last().mean())


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
    whose = "mean over all lists" if subset == "all lists" else f"list {subset}"
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
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def named(ablations: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns `ablation` and `where`, the words for what was done."""
    pairs = zip(ablations["component"], ablations["method"], strict=True)
    where = ablations["layer"].astype(str)
    where = where.where(where.isin(["all", "none"]), "layer " + where).replace("all", "all layers")
    return ablations.assign(ablation=[ABLATIONS[pair] for pair in pairs], where=where)


def ablation_bars(ablations: pd.DataFrame) -> go.Figure:
    """Loss above accuracy under each ablation, for the sample and for all lists."""
    table = named(ablations).melt(
        [*MODEL, "subset", "ablation", "where"], ["loss", "accuracy"], "metric", "value"
    )
    stats = over_seeds(table, ["metric", "subset", "ablation", "where"], "value")
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
    figure.for_each_annotation(lambda note: note.update(text=_facet(note.text)))
    for row, (metric, label) in enumerate({"accuracy": "accuracy", "loss": NATS}.items(), start=1):
        top = stats.loc[stats["metric"] == metric, "max"].max()
        figure.update_yaxes(matches=None, range=[0, 1.08 * top], row=row)
        figure.update_yaxes(title=label, row=row, col=1)
        for column, subset in enumerate(subsets, start=1):
            level = none[metric, subset]
            figure.add_hline(level, line_dash="dash", line_color=GREY, row=row, col=column)
    return figure.update_layout(
        legend={"orientation": "h", "y": -0.08, "x": 0.5, "xanchor": "center"}
    )


def _facet(text: str) -> str:
    """The heading of a facet: none for a metric, which the axis names."""
    kind, _, name = text.partition("=")
    if kind == "metric":
        return ""
    return name if name == "all lists" else f"list {name}"


def ablation_positions(ablations: pd.DataFrame) -> go.Figure:
    """What each prediction adds to the loss over all lists, under each ablation."""
    table = named(ablations[ablations["subset"] == "all lists"])
    columns = [name for name in table.columns if name.startswith("loss_at_")]
    table["case"] = table["ablation"] + ", " + table["where"]
    table.loc[table["ablation"] == "none", "case"] = "none"
    long = table.melt([*MODEL, "case"], columns, "prediction", "part")
    long["part"] /= len(columns)
    long["prediction"] = long["prediction"].replace(PREDICTIONS)
    figure = px.bar(
        over_seeds(long, ["case", "prediction"], "part"),
        x="mean",
        y="case",
        color="prediction",
        orientation="h",
        color_discrete_sequence=COLORS,
        labels={"mean": f"contribution to the mean {NATS}", "case": "", "prediction": ""},
        title="Which predictions an ablation harms (all lists)",
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
    stats = over_seeds(table, ["case", "layer", "number"], "accuracy")
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
    figure.for_each_annotation(lambda note: note.update(text=note.text.partition("=")[2]))
    figure.add_hline(table["chance"].iloc[0], line_dash="dash", line_color=GREY)
    return figure.update_yaxes(range=[0, 1.05])


def compare(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Final loss and accuracy of every model."""
    index = ["run", "variant", "seed"]
    training = tables["training"].fillna({"variant": ""})
    return {"models": training.groupby(index).last().reset_index()}


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name."""
    training, ablations, patterns = (tables[k] for k in ("training", "ablations", "patterns"))
    sample, everything = patterns["subset"].unique()
    figures = {
        "loss": loss(training),
        "accuracy": accuracy(training, settings),
        "attention_sample": attention(patterns, sample),
        "attention_mean": attention(patterns, everything),
        "ablations": ablation_bars(ablations),
        "ablation_positions": ablation_positions(ablations),
        "explained_variance": explained_variance(tables["pca_variance"]),
        "probes": probes(tables["probes"]),
    }
    scatters = {f"pca_{by}": pca(tables["pca"], tables["pca_variance"], by) for by in COLORED_BY}
    return figures | scatters
