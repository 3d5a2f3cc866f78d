"""The embedding: singular values and vectors, and its Fourier transform."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from toycircuits.core.plotting import COLORS
from toycircuits.experiments.modular_arithmetic.figures.heatmap import heatmap, matrix


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


def embedding_projection(table: pd.DataFrame) -> go.Figure:
    """W_E in the Fourier basis."""
    values = matrix(table, ("component",))
    title = "Embedding W_E in the Fourier basis"
    return heatmap(values, title, ("d_model", "component"), y=table["component"])


def key_rows_gram(embedding_gram: pd.DataFrame) -> go.Figure:
    """Cosine similarities between the key rows of the transformed embedding."""
    names = embedding_gram["component"].tolist()
    values = embedding_gram[names].to_numpy(dtype=float)
    title = "Cosine similarity of the key rows of the embedding"
    options = {"x": names, "y": names, "text_auto": ".2f", "zmin": -1, "zmax": 1}
    figure = heatmap(values, title, ("component", "component"), **options)
    return figure.update_layout(coloraxis_colorbar_title="cosine")
