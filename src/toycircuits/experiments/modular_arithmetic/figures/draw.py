"""Figures of modular arithmetic, drawn from its tables alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.config import Settings
from toycircuits.core.plotting import COLORS, DASHES, DIVERGING, GREY, LOG, LOG_AXIS, SEQUENTIAL
from toycircuits.core.tables import MODEL, first_model, model_number

GUIDE = {"dash": "dot", "color": "black", "width": 1.5}
STEP, LOSS = "training step (full-batch epoch)", "cross-entropy loss (nats)"
BASIS_ROWS_SHOWN = 7


class RenderSettings(Settings):
    """What to draw beside the measured values.

    Attributes:
        published_phases: steps that the original study marked by hand, or None where there is
            nothing to compare with.
    """

    published_phases: tuple[int, int, int] | None


def matrix(table: pd.DataFrame, drop: tuple[str, ...] = ()) -> np.ndarray:
    """The values of a wide table, without the columns that label its rows."""
    return table.drop(columns=[*MODEL, *drop]).to_numpy(dtype=float)


def heatmap(values: np.ndarray, title: str, axes: tuple[str, str], **options: Any) -> go.Figure:
    """A heatmap; diverging colours around 0 where there are negative values."""
    if values.min() < 0:
        limit = float(np.abs(values).max())
        options |= {"color_continuous_scale": DIVERGING, "zmin": -limit, "zmax": limit}
    else:
        options = {"color_continuous_scale": SEQUENTIAL} | options
    figure = px.imshow(
        values, title=title, labels=dict(zip("xy", axes, strict=True)), aspect="auto", **options
    )
    return figure.update_layout(height=560)


def loss_curves(training: pd.DataFrame, uniform: float) -> go.Figure:
    """Training and test loss of every model, and the loss of guessing."""
    long = training.melt([*MODEL, "step"], ["train_loss", "test_loss"], "pairs", "loss")
    long["pairs"] = long["pairs"].str.removesuffix("_loss")
    long["model"] = model_number(long)
    figure = px.line(
        long,
        x="step",
        y="loss",
        color="pairs",
        line_group="model",
        log_y=True,
        title="Loss over training",
        labels={"step": STEP, "loss": LOSS, "pairs": "pairs"},
    )
    # A trace, not a shape: a shape's height would be read as an exponent on the log axis.
    ends = {"x": [0, training["step"].max()], "y": [uniform, uniform], "mode": "lines"}
    figure.add_scatter(**ends, line=GUIDE, name="guessing, ln p")
    return figure.update_yaxes(**LOG_AXIS)


def loss_with_phases(
    training: pd.DataFrame, phases: pd.DataFrame, published: tuple[int, ...] | None, uniform: float
) -> go.Figure:
    """The loss curves of the first model with the measured ends of the three phases."""
    figure = loss_curves(first_model(training), uniform)
    figure.update_layout(title="Memorisation, circuit formation, cleanup")
    steps = first_model(phases).set_index("phase")["step"]
    names = ("memorisation_end", "circuit_formation_end", "cleanup_end")
    for name, color, dash in zip(names, COLORS[2:], DASHES[1:], strict=False):
        if np.isfinite(steps[name]):
            line = {"color": color, "width": 2, "dash": dash}
            figure.add_vline(steps[name], line=line)
            label = f"{name.removesuffix('_end').replace('_', ' ')} ends at {steps[name]:.0f}"
            figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=label)
    for step in published or ():
        figure.add_vline(step, line_dash="longdash", line_color="#888888")
    if published:
        dashes = {"dash": "longdash", "color": "#888888"}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=dashes, name="published, by hand")
    return figure


def singular_values(embedding_svd: pd.DataFrame) -> go.Figure:
    """Singular values of W_E beside those of a Gaussian matrix of the same norm."""
    table = embedding_svd.rename(columns={"singular_value": "W_E", "control": "Gaussian control"})
    return px.line(
        table,
        x="index",
        y=["W_E", "Gaussian control"],
        markers=True,
        title="Singular values of the embedding W_E",
        labels={"index": "index of the singular value", "value": "singular value", "variable": ""},
    )


def singular_vectors(embedding_vectors: pd.DataFrame) -> go.Figure:
    """The first eight left singular vectors of W_E, over the number embedded."""
    values = matrix(embedding_vectors)
    figure = make_subplots(4, 2, shared_xaxes=True, vertical_spacing=0.05, horizontal_spacing=0.14)
    for index, column in enumerate(values.T):
        row, col = index // 2 + 1, index % 2 + 1
        figure.add_scatter(y=column, row=row, col=col, line={"color": COLORS[0], "width": 1.5})
        figure.update_yaxes(title_text=f"u<sub>{index}</sub>", row=row, col=col)
    figure.update_xaxes(title_text="number embedded", row=4)
    title = "First left singular vectors of the embedding W_E"
    return figure.update_layout(title=title, showlegend=False, height=640)


def basis_heatmap(fourier_basis: pd.DataFrame) -> go.Figure:
    """The Fourier basis over Z_p."""
    values = matrix(fourier_basis, ("component",))
    title = "Fourier basis over the numbers mod p (unit norm)"
    return heatmap(values, title, ("number", "component"), y=fourier_basis["component"])


def basis_lines(fourier_basis: pd.DataFrame) -> go.Figure:
    """The first rows of the Fourier basis as waves."""
    rows = fourier_basis.head(BASIS_ROWS_SHOWN).drop(columns=MODEL)
    long = rows.melt("component", var_name="number", value_name="value")
    long["number"] = long["number"].str.removeprefix("x").astype(int)
    names = rows["component"].str.split(" ")
    kinds, numbers = names.str[0].tolist(), names.str[-1].tolist()
    figure = px.line(
        long,
        x="number",
        y="value",
        color="component",
        line_dash="component",
        color_discrete_sequence=[COLORS[int(k) if k.isdigit() else 0] for k in numbers],
        line_dash_sequence=[{"const": "dot", "cos": "solid"}.get(kind, "dash") for kind in kinds],
        labels={"number": "number", "value": "value (unit-norm row)"},
        title=f"The first {BASIS_ROWS_SHOWN} rows of the Fourier basis",
    )
    return figure.update_layout(legend_title_text="")


def basis_gram(fourier_basis: pd.DataFrame) -> go.Figure:
    """Gram matrix of the Fourier basis: the identity."""
    values = matrix(fourier_basis, ("component",))
    # Rounded, so that rounding errors do not bring in negative values and their colours.
    names = fourier_basis["component"]
    gram = (values @ values.T).round(3) + 0.0
    title = "The Fourier basis is orthonormal"
    return heatmap(gram, title, ("component", "component"), x=names, y=names)


def embedding_projection(table: pd.DataFrame) -> go.Figure:
    """W_E in the Fourier basis."""
    values = matrix(table, ("component",))
    title = "Embedding W_E in the Fourier basis"
    return heatmap(values, title, ("d_model", "component"), y=table["component"])


def component_norms(table: pd.DataFrame, title: str, ylabel: str) -> go.Figure:
    """Norm of each Fourier component of a matrix, with its control where there is one."""
    labels = {"component": "Fourier component", "norm": ylabel}
    figure = px.bar(table, x="component", y="norm", title=title, labels=labels)
    if "control" in table:
        figure.update_traces(name="trained", showlegend=True)
        line = {"color": GREY, "width": 1.5, "shape": "hvh"}
        figure.add_scatter(
            x=table["component"],
            y=table["control"],
            mode="lines",
            line=line,
            name="Gaussian control",
        )
    return figure.update_xaxes(nticks=24, tickangle=-60)


def key_rows_gram(embedding_gram: pd.DataFrame) -> go.Figure:
    """Cosine similarities between the key rows of the transformed embedding."""
    names = embedding_gram["component"].tolist()
    values = embedding_gram[names].to_numpy(dtype=float)
    title = "Cosine similarity of the key rows of the embedding"
    options = {"x": names, "y": names, "text_auto": ".2f", "zmin": -1, "zmax": 1}
    figure = heatmap(values, title, ("component", "component"), **options)
    return figure.update_layout(coloraxis_colorbar_title="cosine")


def head_facets(figure: go.Figure) -> go.Figure:
    """Facet headings in words: "head 0" for "head=0"."""
    figure.for_each_annotation(lambda note: note.update(text=note.text.replace("=", " ")))
    return figure


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


def neuron_shares(neurons: pd.DataFrame) -> go.Figure:
    """Share of each neuron's variance that its best frequency explains, sorted."""
    table = pd.DataFrame(
        {name: np.sort(neurons[column])[::-1] for name, column in (
            ("trained network", "share"), ("noise control", "control"))}
    )  # fmt: skip
    labels = {"index": "neuron, sorted", "value": "share of variance", "variable": ""}
    title = "Share of each neuron's variance explained by its best frequency"
    return px.line(table, title=title, labels=labels, range_y=[0, 1.02])


def neuron_frequency_counts(neurons: pd.DataFrame) -> go.Figure:
    """How many neurons each frequency has."""
    counts = neurons["frequency"].value_counts().sort_index()
    labels = {"x": "frequency k", "y": "neurons"}
    title = "Neurons by the frequency that explains them best"
    figure = px.bar(x=counts.index, y=counts, title=title, labels=labels)
    return figure.update_xaxes(type="category")


def neuron_fourier(table: pd.DataFrame) -> go.Figure:
    """Root mean square, over neurons, of the 2-D Fourier transform of the centred activations."""
    values = matrix(table, ("component",))
    names = table["component"]
    title = "MLP activations in the 2-D Fourier basis"
    figure = heatmap(values, title, ("component of b", "component of a"), x=names, y=names)
    return figure.update_layout(coloraxis_colorbar_title="rms")


def logit_cosines(table: pd.DataFrame) -> go.Figure:
    """Cosine similarity of the logits with cos(w_k(a + s b - c)), and of two controls."""
    names = {"cosine": "the task's sign", "other_sign": "other sign", "noise": "noise logits"}
    long = table.rename(columns=names).melt(
        "frequency", list(names.values()), "direction", "cosine similarity"
    )
    labels = {"frequency": "frequency k", "direction": ""}
    title = "Logits against cosines of the task and controls"
    return px.bar(
        long,
        x="frequency",
        y="cosine similarity",
        color="direction",
        barmode="group",
        title=title,
        labels=labels,
    )


def cosines_over_training(
    cosines: pd.DataFrame, progress: pd.DataFrame, key: list[int]
) -> go.Figure:
    """Cosine similarity per frequency and the residual, over the checkpoints."""
    figure = go.Figure()
    names = [name for name in cosines.columns if name.startswith("k")]
    quiet = [name for name in names if int(name[1:]) not in key]
    for index, name in enumerate(quiet):
        figure.add_scatter(
            x=cosines["step"],
            y=cosines[name],
            line={"color": "#c8c8c8", "width": 1},
            name="other frequencies",
            showlegend=index == 0,
            legendgroup="others",
        )
    for index, k in enumerate(key):
        figure.add_scatter(
            x=cosines["step"],
            y=cosines[f"k{k}"],
            line={"color": COLORS[index % len(COLORS)], "dash": DASHES[index // 4 % len(DASHES)]},
            name=f"key frequency {k}",
        )
    residual = {"color": "black", "dash": "dash"}
    figure.add_scatter(x=progress["step"], y=progress["residual"], line=residual, name="residual")
    return figure.update_layout(
        title="Cosine similarity of the logits with each frequency",
        xaxis_title=STEP,
        yaxis_title="cosine similarity;<br>residual: share of norm",
    )


def restricted_excluded(progress: pd.DataFrame) -> go.Figure:
    """Restricted and excluded loss beside training and test loss, with their controls."""
    solid = ["train_loss", "test_loss", "restricted_loss", "excluded_loss"]
    controls = {"other_sign": "dot", "random": "dash"}  # of the two measures, in their colours
    figure = go.Figure()
    for index, name in enumerate(solid):
        figure.add_scatter(
            x=progress["step"],
            y=progress[name],
            name=name.replace("_", " "),
            line={"color": COLORS[index], "width": 2.5},
        )
    for index, name in [*enumerate(solid)][2:]:
        for control, dash in controls.items():
            figure.add_scatter(
                x=progress["step"],
                y=progress[f"{name}_{control}"],
                name=f"{name.removesuffix('_loss')}, {control.replace('_', ' ')}",
                line={"color": COLORS[index], "width": 1.5, "dash": dash},
            )
    return figure.update_layout(
        title="Restricted and excluded loss (broken lines: controls)",
        xaxis_title=STEP,
        yaxis_title=LOSS,
        yaxis=LOG_AXIS,
        height=520,
    )


def restricted_ratio(progress: pd.DataFrame) -> go.Figure:
    """Restricted loss over test loss."""
    labels = {"step": STEP, "restricted_ratio": "restricted loss / test loss"}
    title = "Restricted loss in units of the test loss"
    figure = px.line(
        progress, x="step", y="restricted_ratio", log_y=True, title=title, labels=labels
    )
    ends = {"x": [0, progress["step"].max()], "y": [1, 1], "mode": "lines"}
    return figure.add_scatter(**ends, line=GUIDE, showlegend=False).update_yaxes(**LOG_AXIS)


def progress_measures(progress: pd.DataFrame) -> go.Figure:
    """Accuracy, Gini coefficients and squared weights over training."""
    panels = {
        "accuracy": {"train_accuracy": "train accuracy", "test_accuracy": "test accuracy"},
        "Gini coefficient": {"gini_W_E": "Gini of W_E", "gini_W_logit": "Gini of W_logit"},
        "sum of squares": {"sum_squared_weights": "all weights, squared"},
    }
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (ylabel, names) in enumerate(panels.items(), start=1):
        for index, (name, label) in enumerate(names.items()):
            figure.add_scatter(
                x=progress["step"],
                y=progress[name],
                row=row,
                col=1,
                name=label,
                line_color=COLORS[(2 * row - 2 + index) % len(COLORS)],
            )
        figure.update_yaxes(title_text=ylabel, row=row, col=1)
    figure.update_xaxes(title_text=STEP, row=len(panels))
    return figure.update_layout(title="Further progress measures", height=680)


def key_waves(fourier_basis: pd.DataFrame, key: list[int]) -> go.Figure:
    """Cosine and sine of the key frequencies over the numbers."""
    table = fourier_basis.set_index("component").drop(columns=MODEL)
    figure = make_subplots(len(key), 1, shared_xaxes=True, vertical_spacing=0.05)
    for row, k in enumerate(key, start=1):
        for index, kind in enumerate(("cos", "sin")):
            figure.add_scatter(
                y=table.loc[f"{kind} {k}"],
                row=row,
                col=1,
                name=kind,
                line_color=COLORS[index],
                showlegend=row == 1,
            )
        figure.update_yaxes(title_text=f"k = {k}", row=row, col=1)
    figure.update_xaxes(title_text="number", row=len(key))
    title = "Waves of the key frequencies (unit norm)"
    return figure.update_layout(title=title, height=160 + 130 * len(key))


def ablation_bars(ablations: pd.DataFrame) -> go.Figure:
    """Test loss and accuracy after each ablation."""
    table = ablations[ablations["pairs"] == "test"]
    heads = table["head"].astype(object).fillna("").astype(str).str.removesuffix(".0")
    where = heads.where(heads.isin(["", "all"]), " head " + heads).replace("all", "")
    label = table["component"] + where + ", " + table["method"]
    label = label.replace("none, none", "nothing ablated")
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)
    figure.add_bar(y=label, x=table["loss"], orientation="h", row=1, col=1)
    figure.add_bar(y=label, x=table["accuracy"], orientation="h", row=1, col=2)
    figure.update_xaxes(title_text=LOSS, **LOG, row=1, col=1)
    figure.update_xaxes(title_text="accuracy", range=[0, 1.02], row=1, col=2)
    figure.update_yaxes(autorange="reversed")
    title = "Test pairs after ablating one component"
    return figure.update_layout(title=title, showlegend=False, height=160 + 22 * len(table))


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Which models grokked, when their phases ended, and their final losses."""
    phases = tables["phases"].pivot(index=MODEL, columns="phase", values="step")
    final = tables["progress"].groupby(MODEL).last()
    losses = ["train_loss", "test_loss", "restricted_loss", "excluded_loss", "residual"]
    return {"models": final[losses].join(phases).reset_index()}


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures. Curves show every model; pictures of weights show the first.

    Where no frequency is key, the two figures about key frequencies alone are left out.
    """
    one = {name: first_model(table) for name, table in tables.items() if "seed" in table}
    frequencies = one["logit_frequencies"]
    key = frequencies.loc[frequencies["key"], "frequency"].tolist()
    p = len(one["fourier_basis"])
    uniform = float(np.log(p))
    training = tables["training"]
    of_key = (
        {
            "embedding_key_gram": key_rows_gram(one["embedding_gram"]),
            "key_waves": key_waves(one["fourier_basis"], key),
        }
        if key
        else {}
    )
    return {
        "loss": loss_curves(training, uniform),
        "loss_phases": loss_with_phases(
            training, tables["phases"], settings.published_phases, uniform
        ),
        "embedding_singular_values": singular_values(one["embedding_svd"]),
        "embedding_singular_vectors": singular_vectors(one["embedding_vectors"]),
        "fourier_basis": basis_heatmap(one["fourier_basis"]),
        "fourier_basis_rows": basis_lines(one["fourier_basis"]),
        "fourier_basis_gram": basis_gram(one["fourier_basis"]),
        "embedding_fourier": embedding_projection(one["embedding_projection"]),
        "embedding_fourier_norms": component_norms(
            one["embedding_fourier"], "Embedding W_E in the Fourier basis", "norm over d_model"
        ),
        "attention_means": attention_means(one["attention"]),
        "attention_maps": attention_maps(one["attention_maps"]),
        "neuron_shares": neuron_shares(one["neurons"]),
        "neuron_frequencies": neuron_frequency_counts(one["neurons"]),
        "neuron_fourier": neuron_fourier(one["neuron_fourier"]),
        "logit_weights_fourier": component_norms(
            one["logit_weights_fourier"], "W_out W_U in the Fourier basis", "norm over neurons"
        ),
        "logit_cosines": logit_cosines(frequencies),
        "cosines_over_training": cosines_over_training(
            one["cosines_by_step"], one["progress"], key
        ),
        "restricted_excluded": restricted_excluded(one["progress"]),
        "restricted_ratio": restricted_ratio(one["progress"]),
        "progress_measures": progress_measures(one["progress"]),
        "ablations": ablation_bars(one["ablations"]),
        **of_key,
    }
