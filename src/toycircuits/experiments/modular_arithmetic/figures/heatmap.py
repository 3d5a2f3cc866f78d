"""Heatmaps of wide tables."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import DIVERGING, SEQUENTIAL
from toycircuits.core.tables import MODEL


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
