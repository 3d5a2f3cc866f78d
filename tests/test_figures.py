"""The figures drawn from the tables that git carries: every axis says what it shows."""

import contextlib
import functools
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from toycircuits.core import render
from toycircuits.core.config import read_params

ROOT = Path(__file__).resolve().parents[1]
PARAMS = read_params(ROOT / "params.yaml")
# A loss has a unit; a count, or a value in the task's own numbers, has none.
IN_NATS = re.compile(r"\b(loss|cross-entropy)\b", re.IGNORECASE)
UNIT = re.compile(r"\(nats|squared error| / ", re.IGNORECASE)


@functools.cache
def drawn(experiment: str) -> dict[str, go.Figure]:
    with contextlib.chdir(ROOT):
        return render.draw(PARAMS, experiment, PARAMS["experiments"][experiment]["slice"])[1]


def titles(figure: go.Figure, kind: str) -> list[str]:
    axes = [*(figure.select_xaxes() if kind == "x" else figure.select_yaxes())]
    axes += [scene[f"{kind}axis"] for scene in figure.select_scenes()]
    return [axis.title.text for axis in axes if axis.title.text]


def has_numbers(figure: go.Figure, kind: str) -> bool:
    """Whether values on this axis are numbers; names of categories need no title."""
    columns = [trace[kind] for trace in figure.data if kind in trace and trace[kind] is not None]
    return any(np.issubdtype(np.asarray(values).dtype, np.number) for values in columns)


@pytest.mark.parametrize("experiment", PARAMS["experiments"])
def test_every_axis_of_numbers_is_named(experiment: str) -> None:
    """Panels that share an axis have its title once."""
    missing = [
        f"{name}: {kind}"
        for name, figure in drawn(experiment).items()
        for kind in "xy"
        if has_numbers(figure, kind) and not titles(figure, kind)
    ]
    assert not missing


@pytest.mark.parametrize("experiment", PARAMS["experiments"])
def test_losses_have_their_unit(experiment: str) -> None:
    bare = [
        f"{name}: {title}"
        for name, figure in drawn(experiment).items()
        for kind in "xy"
        for title in titles(figure, kind)
        if IN_NATS.search(title) and not UNIT.search(title)
    ]
    assert not bare
