"""Figures and comparing tables of in-context linear regression, made from its tables alone.

Runs without variants differ in their number of heads: they are the group "heads". A run with
variants is a group of its own. Where a picture shows weights, they are those of the first seed.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.config import Settings
from toycircuits.core.plotting import COLORS, DASHES, DIVERGING, GREY, LEGEND_BELOW
from toycircuits.core.tables import MODEL, Z95, first_model, first_seeds

HEADS = "heads"
DESCENT = "centred gradient descent, best rate"
MSE = "mean squared error of y<sub>q</sub>"
WEIGHTS = {"w": "w<sub>h</sub>", "mu": "μ<sub>h</sub>"}
TICKS = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)]
FEW_DECADES = {"type": "log", "tickvals": TICKS, "tickformat": "~g"}
NEAR = 0.03  # share of the best rate that claims allow a sum of w mu to be off
CELL, COLUMNS = 150, 4  # pixels of a heatmap's side; heads beside each other
ESTIMATORS = {  # colour and dash of each line over the number of examples
    "transformer": (COLORS[0], "solid"),
    "kernel": (COLORS[1], "dot"),
    "gradient descent": (COLORS[5], "dashdot"),
    DESCENT: (COLORS[2], "dash"),
    "ridge": (COLORS[6], "solid"),
    "untrained": (COLORS[3], "solid"),
    "zero": (GREY, "dash"),
}


class Published(Settings):
    """What the original study printed of one run.

    Attributes:
        heads: (w, mu) of each head, or None.
        mu_sums: sums of the negative and of the positive mu, or None.
        w_mu: sum of w mu, or None.
    """

    heads: tuple[tuple[float, float], ...] | None
    mu_sums: tuple[float, float] | None
    w_mu: float | None


class RenderSettings(Settings):
    """What to show beside the measured values.

    Attributes:
        published: by run, or None for nothing.
    """

    published: dict[str, Published] | None


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns `group` and `label`.

    >>> table = pd.DataFrame({"run": ["lr_h2", "lr_inits"], "variant": ["", "small_id"]})
    >>> named(table)[["group", "label"]].values.tolist()
    [['heads', 'H = 2'], ['inits', 'small_id']]
    """
    table = table.sort_values(["run", "variant"], kind="stable")  # one order, and so one colour
    variant, last = table["variant"], table["run"].str.rpartition("_")[2]
    return table.assign(
        group=last.where(variant != "", HEADS),
        label=variant.where(variant != "", last.str.replace(r"^h(\d+)$", r"H = \1", regex=True)),
    )


def parts(table: pd.DataFrame, by: str = "label") -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each value of column `by`, in order of appearance."""
    for name, part in table.groupby(by, sort=False):
        yield str(name), part


def with_layer(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the layer added to the labels of models that have several."""
    several = table.groupby("label")["layer"].transform("nunique") > 1
    layer = ", layer " + table["layer"].astype(str)
    return table.assign(label=table["label"] + layer.where(several, ""))


def losses(training: pd.DataFrame, reference: float) -> go.Figure:
    """Validation loss of every model over training: a panel a group, a line a seed."""
    groups = list(parts(training, "group"))
    titles = [name for name, _ in groups]
    figure = make_subplots(1, len(groups), shared_yaxes=True, subplot_titles=titles)
    for column, (group, table) in enumerate(groups, start=1):
        for color, (label, lines) in zip(COLORS, parts(table), strict=False):
            for index, (_, line) in enumerate(parts(lines, "seed")):
                figure.add_scatter(
                    x=line["step"],
                    y=line["validation_loss"],
                    line={"color": color, "width": 1.5},
                    mode="lines",
                    name=label,
                    legendgroup=group,
                    legendgrouptitle_text=group,
                    showlegend=index == 0,
                    row=1,
                    col=column,
                )
    figure.add_hline(reference, line_dash="dash", line_color=GREY)
    figure.update_xaxes(title="optimiser step").update_yaxes(**FEW_DECADES).update_yaxes(
        title=MSE, col=1
    )
    title = f"Loss over training (dashed: {DESCENT}, {reference:.3f})"
    return figure.update_layout(title=title, width=320 * len(groups) + 200, height=560)


def dynamics(heads: pd.DataFrame) -> go.Figure:
    """Draw w and mu of every head over training, a column for each model and layer."""
    columns = list(parts(with_layer(first_seeds(heads))))
    titles = [label for label, _ in columns]
    figure = make_subplots(
        2, len(columns), shared_xaxes=True, shared_yaxes=True, column_titles=titles
    )
    shown: set[int] = set()
    for column, (_, table) in enumerate(columns, start=1):
        for head in sorted(map(int, table["head"].unique())):
            line = table[table["head"] == head]
            for row, name in enumerate(WEIGHTS, start=1):
                figure.add_scatter(
                    x=line["step"],
                    y=line[name],
                    line={
                        "color": COLORS[head % len(COLORS)],
                        "dash": DASHES[head // 4 % len(DASHES)],
                        "width": 1.5,
                    },
                    name=f"head {head}",
                    legendgroup=str(head),
                    showlegend=head not in shown,
                    row=row,
                    col=column,
                )
                shown.add(head)
    for row, name in enumerate(WEIGHTS.values(), start=1):
        figure.update_yaxes(title=name, row=row, col=1)
    figure.update_xaxes(title="optimiser step", row=2)
    figure.update_yaxes(zeroline=True, zerolinecolor="#bbbbbb")
    title = "w and μ of every head over training"
    return figure.update_layout(title=title, height=520, width=max(760, 210 * len(columns) + 160))


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
    """A colour axis that is even about zero.

    Colours end at three times what is usual of the matrices, one for each of `by`: a single large
    one would leave the others white.
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
    several = ov["label"].nunique() > 1
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
    for index, (label, head) in enumerate(heads):
        row, col = 2 * (index // columns) + 1, index % columns + 1
        name = f"{label}<br>head {head}" if several else f"head {head}"
        figure.layout.annotations[(row - 1) * columns + col - 1].text = name
        for offset, table, axis in ((0, qk, "coloraxis"), (1, ov, "coloraxis2")):
            values = matrix(table[(table["label"] == label) & (table["head"] == head)])
            values = values.T if offset else values
            figure.add_heatmap(z=values, coloraxis=axis, row=row + offset, col=col)
            split_axes(figure, (values.shape[0], values.shape[1]), row + offset, col)
            rows = out if offset else size
            figure.update_yaxes(range=[rows - 0.5, -0.5], row=row + offset, col=col)
            if values.shape[0] == 1:
                figure.update_yaxes(showticklabels=False, ticks="", row=row + offset, col=col)
    for row in range(1, 2 * bands + 1):
        title = "OV<sup>T</sup>" if row % 2 == 0 else "QK: query"
        figure.update_yaxes(title=title, row=row, col=1)
        if row % 2 == 0:
            figure.update_xaxes(showticklabels=False, ticks="", row=row)
        else:
            figure.update_xaxes(title={"text": "key", "standoff": 0}, row=row)
    figure.update_xaxes(showgrid=False, showline=False)
    figure.update_yaxes(showgrid=False, showline=False)
    return figure.update_layout(
        title="QK and OV of every head (a query's y is 0)",
        coloraxis=symmetric(qk, ["label", "head"], "QK", len=0.5, y=1, yanchor="top"),
        coloraxis2=symmetric(ov, ["label", "head"], "OV", len=0.5, y=0, yanchor="bottom"),
        width=max(520, columns * (CELL + 40) + 200),
        height=height + 120,
        margin_t=100,
    )


def qk_evolution(qk: pd.DataFrame) -> go.Figure:
    """QK of every head at the kept steps: a row a head, a column a step."""
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


def band(
    figure: go.Figure, line: pd.DataFrame, name: str, style: tuple[str, str], **options: object
) -> None:
    """A line over the number of examples with its 95% confidence band."""
    color, dash = style
    low, high = (line["mse"] + sign * Z95 * line["standard_error"] for sign in (-1, 1))
    x = line["length"].to_list()
    figure.add_scatter(
        x=x + x[::-1],
        y=high.to_list() + low.to_list()[::-1],
        fill="toself",
        fillcolor=color,
        opacity=0.25,
        line_width=0,
        mode="lines",
        hoverinfo="skip",
        **({"legendgroup": name} | options | {"showlegend": False}),
    )
    style_of = {"color": color, "dash": dash, "width": 1.75}
    options = {"legendgroup": name, **options}
    figure.add_scatter(x=x, y=line["mse"], line=style_of, mode="lines", name=name, **options)


def context(table: pd.DataFrame) -> go.Figure:
    """Error of every estimator over the number of examples: a panel a model."""
    models = list(parts(first_seeds(table)))
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    titles = [label for label, _ in models]
    figure = make_subplots(
        rows,
        columns,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=titles,
        vertical_spacing=0.2 / (rows + 1),
    )
    seen: set[str] = set()
    for index, (_, model) in enumerate(models):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        for name, line in parts(model, "estimator"):
            band(figure, line, name, ESTIMATORS[name], showlegend=name not in seen, **place)
            seen.add(name)
    drawn = first_seeds(table).query("estimator != 'ridge'")["mse"]
    # Ridge regression falls by decades: shown to its end, it would leave the others flat.
    lowest, highest = (float(np.log10(end)) for end in (drawn.min(), drawn.max()))
    reach = [lowest - 0.15 * (highest - lowest), highest + 0.05 * (highest - lowest)]
    figure.update_yaxes(**FEW_DECADES, range=reach).update_yaxes(title=MSE, col=1)
    figure.update_xaxes(title="examples in the context", row=rows)
    floor = table.loc[table["estimator"] == "ridge", "mse"].min()
    return figure.update_layout(
        title=f"Error over the number of examples (bands: 95%; ridge falls to {floor:.1g})",
        height=320 * rows + 160,
        width=980,
        legend=LEGEND_BELOW,
    )


def context_all(table: pd.DataFrame) -> go.Figure:
    """Error of every model over the number of examples: a panel a group."""
    table = first_seeds(table)
    groups = list(parts(table, "group"))
    figure = make_subplots(
        1, len(groups), shared_yaxes=True, subplot_titles=[name for name, _ in groups]
    )
    for col, (group, own) in enumerate(groups, start=1):
        place = {"row": 1, "col": col}
        legend = {"legendgroup": group, "legendgrouptitle_text": group}
        lines = own[own["estimator"] == "transformer"]
        for color, (label, line) in zip(COLORS, parts(lines), strict=False):
            band(figure, line, label, (color, "solid"), **place, **legend)
        for name, dash in (("zero", "dash"), (DESCENT, "dot")):
            line = first_model(own[own["estimator"] == name])
            band(figure, line, name, ("black", dash), showlegend=col == 1, **place)
    figure.update_yaxes(**FEW_DECADES).update_yaxes(title=MSE, col=1)
    figure.update_xaxes(title="examples in the context")
    return figure.update_layout(
        title="Error of every model over the number of examples (bands: 95% confidence)",
        width=330 * len(groups) + 300,
        height=580,
    )


def head_comparison(compared: pd.DataFrame) -> go.Figure:
    """(w, mu) of every head of the runs that differ in their number of heads."""
    table = compared[compared["group"] == HEADS]
    figure = px.scatter(
        table,
        x="w",
        y="mu",
        color="label",
        hover_data=["seed", "head"],
        color_discrete_sequence=COLORS,
        labels=WEIGHTS | {"label": ""},
        title="w and μ of every head at the end",
    )
    figure.update_traces(marker={"size": 9, "opacity": 0.8})
    for color, (label, own) in zip(COLORS, parts(table), strict=False):
        known = own.dropna(subset=["published_w"])
        if len(known):
            mark = {"symbol": "diamond-open", "size": 13, "color": color, "line_width": 2}
            figure.add_scatter(
                x=known["published_w"],
                y=known["published_mu"],
                mode="markers",
                marker=mark,
                name=f"{label}, published",
            )
    figure.update_xaxes(zeroline=True, zerolinecolor="#bbbbbb")
    return figure.update_yaxes(zeroline=True, zerolinecolor="#bbbbbb")


def products(models: pd.DataFrame) -> go.Figure:
    """Sum of w mu over the heads of every model of one layer, beside the best rate."""
    table = models.dropna(subset=["w_mu"])
    figure = px.scatter(
        table,
        x="label",
        y="w_mu",
        color="group",
        hover_data=["seed"],
        color_discrete_sequence=COLORS,
        labels={"w_mu": "sum of w<sub>h</sub>μ<sub>h</sub>", "label": "", "group": ""},
        title=f"Sum of w μ over the heads (dashed: best rate of descent; band: {NEAR:.0%} of it)",
    )
    figure.update_traces(marker={"size": 10, "opacity": 0.8}).update_xaxes(tickangle=60)
    figure.update_yaxes(title_standoff=16)  # the subscripts hang below the line
    known = table.dropna(subset=["published_w_mu"]).drop_duplicates("label")
    if len(known):
        mark = {"symbol": "diamond-open", "size": 14, "color": "black"}
        points = {"x": known["label"], "y": known["published_w_mu"], "mode": "markers"}
        figure.add_scatter(**points, marker=mark, name="published")
    best = table["best_rate"].iloc[0]
    ends = {"y0": (1 - NEAR) * best, "y1": (1 + NEAR) * best}
    figure.add_hrect(**ends, fillcolor=GREY, opacity=0.2, line_width=0, layer="below")
    return figure.add_hline(best, line_dash="dash", line_color=GREY)


def final_losses(models: pd.DataFrame) -> go.Figure:
    """Excess of every model's final loss over gradient descent's at the best rate, and close up."""
    near = 4 * float(models["excess_high"].abs().median())
    titles = ["all", "close-up, without those far off"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for color, (group, own) in zip(COLORS, parts(models, "group"), strict=False):
        for col in (1, 2):
            figure.add_scatter(
                x=own["label"],
                y=own["excess_mse"].where((col == 1) | (own["excess_mse"].abs() < near)),
                error_y={"array": Z95 * own["excess_standard_error"]},
                mode="markers",
                marker={"color": color, "size": 8},
                name=group,
                showlegend=col == 1,
                row=1,
                col=col,
            )
    figure.add_hline(0, line_dash="dash", line_color=GREY)
    figure.update_yaxes(range=[-near / 2, near], row=1, col=2).update_xaxes(tickangle=60)
    figure.update_yaxes(title="mean squared error above it", row=1, col=1)
    return figure.update_layout(
        title=f"Final loss above that of {DESCENT} (bars: 95% confidence)", width=980
    )


def head_pruning(ablations: pd.DataFrame) -> go.Figure:
    """Error after each head's output is zeroed or its attention made even: a panel a model."""
    models = list(parts(first_seeds(ablations)))
    columns = min(COLUMNS, len(models))
    rows = -(-len(models) // columns)
    titles = [label for label, _ in models]
    figure = make_subplots(
        rows, columns, shared_yaxes="all", subplot_titles=titles, vertical_spacing=0.25 / rows
    )
    kinds = {("z", "zero"): "output zeroed", ("z", "mean"): "output at its mean"}
    kinds |= {("pattern", "uniform"): "uniform attention"}
    for index, (_, model) in enumerate(models):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        for color, ((component, method), name) in zip(COLORS, kinds.items(), strict=False):
            own = model[(model["component"] == component) & (model["method"] == method)]
            heads = own["head"].astype(float).astype(int).astype(str)
            if model["layer"].nunique() > 1:
                heads = own["layer"].astype(float).astype(int).astype(str) + "." + heads
            figure.add_bar(
                x=heads,
                y=own["loss"],
                marker_color=color,
                name=name,
                legendgroup=name,
                showlegend=index == 0,
                **place,
            )
        none = model.loc[model["component"] == "none", "loss"].item()
        figure.add_hline(none, line_dash="dash", line_color="black", **place)
    figure.update_xaxes(type="category").update_yaxes(title=MSE, col=1)
    for index in range(max(0, len(models) - columns), len(models)):  # the lowest of each column
        place = {"row": index // columns + 1, "col": index % columns + 1}
        figure.update_xaxes(title="head, or layer.head", **place)
    return figure.update_layout(
        title="Error with one head pruned (dashed: nothing pruned)",
        width=max(760, 270 * columns + 60),
        height=250 * rows + 160,
        legend=LEGEND_BELOW,
    )


def compare_heads(heads: pd.DataFrame, settings: RenderSettings) -> pd.DataFrame:
    """(w, mu) of every head at the end, beside the published ones in the same order of w."""
    final = named(heads)
    final = final[final["step"] == final.groupby(MODEL)["step"].transform("max")]
    final = final.sort_values([*MODEL, "layer", "w"], kind="stable")
    final[["published_w", "published_mu"]] = np.nan
    for run, published in (settings.published or {}).items():
        if published.heads is None:
            continue
        for seed in final.loc[final["run"] == run, "seed"].unique():
            rows = final.index[(final["run"] == run) & (final["seed"] == seed)]
            if len(rows) == len(published.heads):
                final.loc[rows, ["published_w", "published_mu"]] = sorted(published.heads)
    return final


def compare_models(
    found: pd.DataFrame, sums: pd.DataFrame, settings: RenderSettings
) -> pd.DataFrame:
    """Final loss of every model with its 95% confidence interval, and the sums over its heads."""
    own = named(found)
    own = own[own["estimator"] == "transformer"].drop(columns="estimator")
    for prefix in ("", "excess_"):
        reach = Z95 * own[f"{prefix}standard_error"]
        own[f"{prefix}low"], own[f"{prefix}high"] = (
            own[f"{prefix}mse"] - reach,
            own[f"{prefix}mse"] + reach,
        )
    own = own.merge(named(sums).drop(columns=["group", "label"]), "left", on=MODEL)
    columns = ("published_mu_negative", "published_mu_positive", "published_w_mu")
    own[[*columns]] = np.nan
    for run, published in (settings.published or {}).items():
        values = (*(published.mu_sums or (np.nan, np.nan)), published.w_mu)
        own.loc[own["run"] == run, [*columns]] = np.array(values, dtype=float)
    return own


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """(w, mu) of every head and the sums and losses of every model, beside published values."""
    return {
        "heads_compared": compare_heads(tables["heads"], settings),
        "models": compare_models(tables["losses"], tables["sums"], settings),
    }


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name."""
    kept = ("training", "heads", "qk", "ov", "context", "losses", "ablations")
    training, heads, qk, ov, context_of, errors, ablations = (named(tables[k]) for k in kept)
    models = tables["models"]
    reference = errors.loc[errors["estimator"] == DESCENT, "mse"].iloc[0]
    figures = {
        "losses": losses(training, reference),
        "context_heads": context(context_of[context_of["group"] == HEADS]),
        "context_all": context_all(context_of),
        "head_comparison": head_comparison(tables["heads_compared"]),
        "products": products(models),
        "final_losses": final_losses(models),
        "head_pruning": head_pruning(ablations),
    }
    for group, own in parts(heads, "group"):
        figures[f"dynamics_{group}"] = dynamics(own)
    for run, own in parts(qk, "run"):
        name = run.rpartition("_")[2]
        figures[f"circuits_{name}"] = circuits(own, ov[ov["run"] == run])
        if own["group"].iloc[0] == HEADS:
            figures[f"qk_evolution_{name}"] = qk_evolution(own)
    return figures
