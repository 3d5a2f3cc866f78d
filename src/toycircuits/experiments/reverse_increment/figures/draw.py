"""Figures and summary tables of the reversed strings, drawn from their tables.

Pictures of one model show the first seed of each run. Curves show a line for each model, bars the
mean over seeds (and draws, of a control) with their range.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.plotting import COLORS, DIVERGING, GREY, LEGEND_BELOW, SEQUENTIAL, bare_facets
from toycircuits.core.tables import MODEL, first_seeds, mean_and_range, wilson

NATS = "cross-entropy (nats)"
EVERYTHING = "all held-out strings"
METHODS = {"none": "nothing", "weight_zero": "weights zeroed", "mean": "output at its mean"}
BELOW = LEGEND_BELOW | {"title": ""}
LABELS = {
    **{"symbol": "output y<sub>i</sub>", "key": "symbol x<sub>j</sub>", "weight": "weight"},
    **{"token": "symbol", "cosine": "cosine", "dimension": "dimension", "value": "value"},
    **{"target": "symbol due", "read": "symbol read", "mean": "share"},
}
PANEL, GAP = 170, 50  # height of a heatmap and space between two, in pixels
APART = 0.12  # of a key: error bars of two cases side by side
DOT = {"color": "white", "size": 6, "line": {"color": "black", "width": 1}}
CROSS = {"symbol": "x-thin", "size": 7, "line": {"color": "black", "width": 1.5}}
RIGHT = {"accuracy": "symbols", "accuracy_string": "whole strings"}


class RenderSettings(Settings):
    """What counts as a success.

    Attributes:
        success_at_least: least share of held-out symbols, or strings, that is right.
    """

    success_at_least: float = Field(gt=0, le=1)


def short_names(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the words that all its runs begin with taken off their names.

    >>> short_names(pd.DataFrame({"run": ["copy_slow", "copy_fast"]}))["run"].tolist()
    ['slow', 'fast']
    """
    beginnings = zip(*(run.split("_")[:-1] for run in table["run"].unique()), strict=False)
    shared = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, beginnings)]
    return table.assign(run=table["run"].str.removeprefix("_".join([*shared, ""])))


def curves(training: pd.DataFrame, names: Mapping[str, str], y: str, title: str) -> go.Figure:
    """Columns `names` of the training log over steps: a colour each, a line for each model."""
    table = training.rename(columns=dict(names))
    figure = px.line(
        table.melt(["step", *MODEL], list(names.values()), "of", y),
        x="step",
        y=y,
        color="of",
        facet_col="run",
        facet_col_spacing=0.06,
        line_group="seed",
        hover_data=["seed"],
        color_discrete_sequence=COLORS,
        labels={"step": "optimiser step", "of": ""},
        title=title,
    )
    return bare_facets(figure).update_layout(legend=BELOW)


def accuracy(training: pd.DataFrame, name: str) -> go.Figure:
    """Share of symbols, or of strings, that is right in the training sample and held out."""
    names = {f"train_{name}": "training strings (sample)", f"holdout_{name}": "held out"}
    last = training.groupby(MODEL, sort=False)[f"holdout_{name}"].last()
    ends = last.groupby("run", sort=False).mean()
    values = ", ".join(f"{run} {end:.1%}" for run, end in ends.items())
    title = f"Mean at the end, held out: {values}"
    figure = curves(training, names, f"share of {RIGHT[name]} right", title)
    return figure.update_yaxes(range=[-0.03, 1.05])


def learning_rate(training: pd.DataFrame) -> go.Figure:
    """The learning rate of each log point; the same for all seeds of a run."""
    peak = training["lr"].max()
    title = f"Learning rate: linear warm-up, then a cosine to zero (largest: {peak:.3g})"
    figure = curves(first_seeds(training), {"lr": "rate"}, "learning rate", title)
    return figure.update_layout(showlegend=False)


def heatmaps(
    table: pd.DataFrame,
    grid: tuple[str, str],
    cell: tuple[str, str, str],
    title: str,
    text: str | None = None,
    **options: Any,
) -> go.Figure:
    """A heatmap for each value of the columns `grid` (down, across), all in the same colours.

    Args:
        cell: the columns that give a value's place down and across, and the value. Cells where the
            column `marked` holds, if there is one, get a dot; where `crossed` holds, a cross.
        text: format of the numbers written in the cells, or None for none.
        options: of the colour axis.
    """
    down, across = (list(table[name].unique()) for name in grid)
    inner = PANEL * len(down) + GAP * (len(down) - 1)
    space = {"vertical_spacing": GAP / inner, "horizontal_spacing": 0.1 / len(across)}
    headings = [f"{a}<br>{d}" for d in down for a in across]
    figure = make_subplots(len(down), len(across), subplot_titles=headings, **space)
    y, x, value = cell
    for index, (d, a) in enumerate((d, a) for d in down for a in across):
        place = {"row": index // len(across) + 1, "col": index % len(across) + 1}
        own = table[(table[grid[0]] == d) & (table[grid[1]] == a)]
        shown = own.pivot(index=y, columns=x, values=value)
        heat = go.Heatmap(z=shown.to_numpy(), x=shown.columns, y=shown.index, coloraxis="coloraxis")
        figure.add_trace(heat.update(texttemplate=text), **place)
        if "marked" in own:
            at = own[own["marked"]]
            figure.add_scatter(x=at[x], y=at[y], mode="markers", marker=DOT, **place)
        if "crossed" in own:
            at = own[own["crossed"]]
            figure.add_scatter(x=at[x], y=at[y], mode="markers", marker=CROSS, **place)
    figure.update_annotations(font_size=12).update_traces(showlegend=False)
    axis = {"showgrid": False, "dtick": 1, "tickfont_size": 11, "showticklabels": False}
    figure.update_xaxes(**axis).update_yaxes(**axis, autorange="reversed")
    figure.update_xaxes(title=LABELS[x], title_font_size=13, showticklabels=True, row=len(down))
    figure.update_yaxes(title=LABELS[y], title_font_size=13, showticklabels=True, col=1)
    colors = {"colorscale": SEQUENTIAL, "colorbar_title": LABELS[value]} | options
    figure.update_coloraxes(**colors)
    margin = {"t": 100, "b": 60}
    return figure.update_layout(title=title, height=inner + sum(margin.values()), margin=margin)


def attention(patterns: pd.DataFrame, run: str) -> go.Figure:
    """Attention of the first seed of `run` to the string: its mean and samples, layer by layer."""
    table = first_seeds(mirrored(patterns[patterns["run"] == run]))
    table = table.assign(string=table["string"].str.replace(" ", ""))
    table["string"] = table["string"].replace({EVERYTHING.replace(" ", ""): "mean"})
    title = f"Attention from the outputs to the string, {run}, seed {table['seed'].iloc[0]}"
    title += " (dots: the symbol needed)"
    return heatmaps(table, ("where", "string"), ("symbol", "key", "weight"), title, cmin=0, cmax=1)


def attention_seeds(patterns: pd.DataFrame) -> go.Figure:
    """Mean attention over the held-out strings, of every seed."""
    table = mirrored(patterns[patterns["string"] == EVERYTHING])
    table = table.assign(seed="seed " + table["seed"].astype(str))
    table["where"] = table["run"] + ", " + table["where"]
    title = "Mean attention over held-out strings (dots: the symbol needed)"
    return heatmaps(table, ("where", "seed"), ("symbol", "key", "weight"), title, cmin=0, cmax=1)


def mirrored(patterns: pd.DataFrame) -> pd.DataFrame:
    """The table with layer and head in words, and the anti-diagonal marked."""
    where = "layer " + patterns["layer"].astype(str)
    if patterns["head"].max() > 0:
        where += ", head " + patterns["head"].astype(str)
    marked = patterns["symbol"] + patterns["key"] == patterns["key"].max()
    return patterns.assign(where=where, marked=marked)


def mirror(table: pd.DataFrame) -> go.Figure:
    """Mean attention on each anti-diagonal, before and after training, and without preference."""
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
    return bare_facets(figure).update_layout(legend=BELOW)


def mirror_course(table: pd.DataFrame) -> go.Figure:
    """How often the largest weight stands on the symbol needed, over training."""
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
    return figure.update_layout(legend=BELOW)


def ablation_bars(ablations: pd.DataFrame, commonest: Mapping[str, float]) -> go.Figure:
    """Held-out symbols right under each ablation.

    Args:
        commonest: run -> what a model has right that writes one symbol always, the best one.
    """
    table = ablations[ablations["method"] != "restored"]
    layered = ~table["layer"].isin(["none", "all"])
    where = ("layer " + table["layer"].astype(str) + " ").where(layered, "")
    table = table.assign(what=where + table["component"], by=table["method"].map(METHODS))
    table.loc[table["component"].str.startswith("random"), "by"] = "random weights zeroed"
    bars = list(table["what"].unique())
    figure = px.bar(
        mean_and_range(table, ["run", "what", "by"], "accuracy"),
        x="mean",
        y="what",
        color="by",
        facet_col="run",
        error_x="up",
        error_x_minus="down",
        orientation="h",
        category_orders={"what": bars},
        color_discrete_sequence=(GREY, *COLORS[:2], "#bbbbbb"),
        labels={"mean": "held-out symbols right", "what": "", "by": ""},
        title="What is left without a component (dashed: the commonest symbol, always)",
        height=520,
    )
    for column, run in enumerate(table["run"].unique(), start=1):
        line = {"line_dash": "dash", "line_color": "black", "row": 1, "col": column}
        figure.add_vline(commonest[run], **line)
    # The range in full: left alone, it leaves out bars of the first traces.
    figure.update_xaxes(range=[0, 1.05]).update_yaxes(range=[-0.6, len(bars) - 0.4])
    return bare_facets(figure).update_layout(legend=BELOW)


def similarity(table: pd.DataFrame) -> go.Figure:
    """Cosines of the last residual stream with the embeddings, for the samples."""
    table = first_seeds(table)
    string = table["string"].str.replace(" ", "")
    marks = {
        "marked": table["token"] == table["target"],
        "crossed": table["token"] == table["read"],
    }
    table = table.assign(string=string, **marks)
    title = "Last residual stream against the embeddings (dots: the answer, crosses: the nearest)"
    return by_string(table, ("symbol", "token", "cosine"), title, cmin=-1, cmax=1)


def by_string(
    table: pd.DataFrame, cell: tuple[str, str, str], title: str, **options: Any
) -> go.Figure:
    """Heatmaps of the samples, which are other strings in each run: a row a run."""
    number = table.groupby("run")["string"].transform(lambda own: pd.factorize(own)[0])
    table = table.assign(number=number)
    figure = heatmaps(table, ("run", "number"), cell, title, colorscale=DIVERGING, **options)
    headings = table.drop_duplicates(["run", "number"])
    names = headings["string"] + "<br>" + headings["run"]
    for note, name in zip(figure.layout.annotations, names, strict=False):
        note.text = name
    return figure


def mlp_output(table: pd.DataFrame) -> go.Figure:
    """What the first layer's MLP adds at the outputs, for the samples."""
    table = first_seeds(table)
    table = table.assign(string=table["string"].str.replace(" ", ""))
    limit = float(table["value"].abs().max())
    title = "Output of the layer-0 MLP where the answer is predicted"
    return by_string(table, ("symbol", "dimension", "value"), title, cmin=-limit, cmax=limit)


def confusion(table: pd.DataFrame) -> go.Figure:
    """Symbols read against symbols due, mean over seeds."""
    stats = mean_and_range(table, ["run", "case", "target", "read"], "share")
    title = "Symbols read at the outputs against symbols due (held out, mean over seeds)"
    cell = ("target", "read", "mean")
    return heatmaps(stats, ("run", "case"), cell, title, "%{z:.2f}", cmin=0, cmax=1)


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """What each model ends with, which share of each run succeeds, and what the runs differ by.

    Also, over seeds: how mirrored attention is, and how often each reading is the answer.
    """
    models = tables["training"].groupby(MODEL, sort=False).last().reset_index()
    mirrored = tables["mirror"].query("shift == 0")
    right = tables["confusion"].query("target == read")
    right = right.assign(share=right["share"] * right["due"])
    right = right.groupby([*MODEL, "case"], sort=False)["share"].sum().reset_index()
    weights = {"mirror_weight": "weight", "mirror_share": "argmax_share"}
    return {
        "models": models,
        "success": success_rates(models, settings.success_at_least),
        "differences": differences(models),
        "mirror_summary": pd.concat(
            mean_and_range(mirrored, ["run", "layer", "head", "case"], column).assign(of=name)
            for name, column in weights.items()
        ),
        "readings": mean_and_range(right, ["run", "case"], "share"),
    }


def success_rates(models: pd.DataFrame, at_least: float) -> pd.DataFrame:
    """Of each run: how many seeds get that share of held-out symbols, or whole strings, right."""
    rows = []
    for run, own in models.groupby("run", sort=False):
        for name, what in RIGHT.items():
            values = own[f"holdout_{name}"]
            successes = int((values >= at_least).sum())
            low, high = wilson(successes, len(values))
            rate = {"seeds": len(values), "successes": successes, "rate": successes / len(values)}
            row = {"run": run, "of": what, "at_least": at_least, **rate, "low": low, "high": high}
            rows.append(row | {"mean": values.mean(), "least": values.min(), "most": values.max()})
    return pd.DataFrame(rows)


def differences(models: pd.DataFrame) -> pd.DataFrame:
    """Each run less the first, seed by seed: mean, least and greatest of the differences."""
    metrics = [name for name in models.columns if name.startswith(("train_", "holdout_"))]
    by_seed = models.set_index("seed")
    first, *others = models["run"].unique()
    rows = []
    for run in others:
        less = by_seed[by_seed["run"] == run][metrics] - by_seed[by_seed["run"] == first][metrics]
        stats = less.agg(["count", "mean", "min", "max"]).T.rename_axis("metric").reset_index()
        stats.insert(0, "run", run)
        stats.insert(1, "less", first)
        rows.append(stats)
    return pd.concat(rows) if rows else pd.DataFrame(columns=["run", "less", "metric"])


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name."""
    known = {name: short_names(t) for name, t in tables.items() if "seed" in t}
    training, patterns = known["training"], known["patterns"]
    losses = {"train_loss": "batch", "holdout_loss": "held out"}
    due = known["confusion"].groupby("run")["due"].max()
    commonest = {str(run): share for run, share in due.items()}
    return {
        "loss": curves(training, losses, NATS, "Loss of the answer's symbols"),
        "accuracy": accuracy(training, "accuracy"),
        "accuracy_string": accuracy(training, "accuracy_string"),
        "learning_rate": learning_rate(training),
        "ablations": ablation_bars(known["ablations"], commonest),
        **{f"attention_{run}": attention(patterns, run) for run in patterns["run"].unique()},
        "attention_seeds": attention_seeds(patterns),
        "mirror": mirror(known["mirror"]),
        "mirror_course": mirror_course(known["mirror_course"]),
        "similarity": similarity(known["similarity"]),
        "confusion": confusion(known["confusion"]),
        "mlp_output": mlp_output(known["mlp"]),
    }
