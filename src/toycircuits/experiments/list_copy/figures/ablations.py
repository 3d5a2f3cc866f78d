"""Figures of the ablations: what is left of copying, and which predictions suffer."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, GREY, LEGEND_BELOW
from toycircuits.core.tables import MODEL, mean_and_range
from toycircuits.experiments.list_copy.figures.curves import NATS, first_run
from toycircuits.experiments.list_copy.figures.patterns import is_one_list

ABLATIONS = {
    ("none", "none"): "none",
    ("pattern", "mean"): "mean pattern",
    ("pattern", "uniform"): "uniform pattern",
    ("value", "zero"): "values zeroed",
}
METRICS = {"accuracy": "accuracy", "loss": NATS}  # rows of the bars, and their axis titles
PREDICTIONS = {
    "loss_at_d1": "d1 predicts d2",
    "loss_at_d2": "d2 predicts SEP",
    "loss_at_SEP": "SEP predicts o1",
    "loss_at_o1": "o1 predicts o2",
}
OUTPUTS = {"loss_at_o1": "o1", "loss_at_o2": "o2"}


def in_words(ablations: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns `ablation` and `where`, which say in words what was done."""
    pairs = zip(ablations["component"], ablations["method"], strict=True)
    where = ablations["layer"].astype(str)
    where = where.where(where.isin(["all", "none"]), "layer " + where).replace("all", "all layers")
    return ablations.assign(ablation=[ABLATIONS[pair] for pair in pairs], where=where)


def ablation_bars(ablations: pd.DataFrame) -> go.Figure:
    """Accuracy above loss under each ablation, for the sample and for all lists."""
    table = in_words(ablations).melt(
        [*MODEL, "subset", "ablation", "where"], ["loss", "accuracy"], "metric", "value"
    )
    stats = mean_and_range(first_run(table), ["metric", "subset", "ablation", "where"], "value")
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
    figure.for_each_annotation(lambda note: note.update(text=_heading(note.text)))
    _scale_rows(figure, stats, subsets)
    return figure.update_layout(legend=LEGEND_BELOW)


def _scale_rows(figure: go.Figure, stats: pd.DataFrame, subsets: list[str]) -> None:
    """Give each row of `figure` its axis, and each facet the line of the unablated model."""
    none = stats[stats["ablation"] == "none"].set_index(["metric", "subset"])["mean"]
    for row, (metric, label) in enumerate(METRICS.items(), start=1):
        top = stats.loc[stats["metric"] == metric, "max"].max()
        figure.update_yaxes(matches=None, range=[0, 1.08 * top], row=row)
        figure.update_yaxes(title=label, row=row, col=1)
        for column, subset in enumerate(subsets, start=1):
            level = none[metric, subset]
            figure.add_hline(level, line_dash="dash", line_color=GREY, row=row, col=column)


def _heading(text: str) -> str:
    """The heading of a facet: none for a metric, because the axis names it."""
    kind, _, name = text.partition("=")
    if kind == "metric":
        return ""
    return f"list {name}" if is_one_list(name) else name


def ablation_positions(ablations: pd.DataFrame) -> go.Figure:
    """What each prediction adds to the loss over all lists, under each ablation."""
    first = first_run(ablations)
    subset = first["subset"].unique()[-1]
    table = in_words(first[first["subset"] == subset])
    columns = [name for name in table.columns if name.startswith("loss_at_")]
    table["case"] = table["ablation"] + ", " + table["where"]
    table.loc[table["ablation"] == "none", "case"] = "none"
    long = table.melt([*MODEL, "case"], columns, "prediction", "part")
    long["part"] /= len(columns)
    names = PREDICTIONS if "loss_at_d1" in columns else OUTPUTS
    long["prediction"] = long["prediction"].replace(names)
    figure = px.bar(
        mean_and_range(long, ["case", "prediction"], "part"),
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
