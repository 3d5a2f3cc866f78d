"""The frequencies of the neurons."""

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.experiments.modular_arithmetic.figures.heatmap import heatmap, matrix


def neuron_shares(neurons: pd.DataFrame) -> go.Figure:
    """Share of each neuron's variance that its best frequency explains, sorted."""
    columns = {"trained network": "share", "noise control": "control"}
    table = pd.DataFrame({name: np.sort(neurons[columns[name]])[::-1] for name in columns})
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
