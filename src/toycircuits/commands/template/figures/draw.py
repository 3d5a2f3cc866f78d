"""A curve for each model, and the accuracy of each run."""

from collections.abc import Mapping

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.config import Settings
from toycircuits.core.plotting import Drawing
from toycircuits.core.tables import MODEL, mean_and_range, model_number


class RenderSettings(Settings):
    """Nothing to set."""


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Accuracy after training, over the seeds of each run and variant."""
    last = tables["training"].groupby(MODEL, dropna=False, sort=False).tail(1)
    accuracy = mean_and_range(last, ["run", "variant"], "accuracy")
    return {"final_accuracy": accuracy[["run", "variant", "mean", "min", "max"]]}


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, Drawing]:
    """All figures, by name."""
    return {"accuracy": Drawing(lambda: accuracy(tables["training"]), over_training=True)}


def accuracy(training: pd.DataFrame) -> go.Figure:
    """Accuracy over training."""
    shown = training.assign(
        seed=training["seed"].astype(str),  # text: numbers would become shades of one colour
        model=model_number(training),  # a line for each model
    )
    return px.line(
        shown,
        x="step",
        y="accuracy",
        color="seed",
        line_group="model",
        title="Accuracy over training",
        labels={"step": "training step", "accuracy": "share of tokens repeated"},
    )
