"""One curve."""

from collections.abc import Mapping

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.config import Settings


class RenderSettings(Settings):
    """Nothing to set."""


def compare(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Nothing to compare."""
    return {}


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """Accuracy over training."""
    return {"accuracy": px.line(tables["training"], x="step", y="accuracy")}
