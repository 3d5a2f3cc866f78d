"""The Fourier basis, and matrices in it."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import COLORS, GREY
from toycircuits.core.tables import MODEL
from toycircuits.experiments.modular_arithmetic.figures.heatmap import heatmap, matrix

BASIS_ROWS_SHOWN = 7


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
