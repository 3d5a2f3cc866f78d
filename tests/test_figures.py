"""The figures drawn from the tables that git carries: every axis says what it shows."""

import contextlib
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from toycircuits.core import paths, render
from toycircuits.core.config import InputError, read_params

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


DAMAGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "no rows": lambda table: table.iloc[:0],
    "one row": lambda table: table.iloc[:1],
    "another layer": lambda table: table.assign(
        **{name: ["99", *table[name][1:]] for name in ("layer", "head") if name in table}
    ),
    "an infinite step": lambda table: table.assign(
        **{name: ["inf", *table[name][1:]] for name in ("step",) if name in table}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("experiment", PARAMS["experiments"])
def test_tables_of_other_content_are_drawn_or_named(
    tmp_path: Path, experiment: str, damage: str
) -> None:
    folder = tmp_path / paths.tables(experiment)
    shutil.copytree(ROOT / paths.tables(experiment), folder)
    for path in folder.rglob("*.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        DAMAGES[damage](table).to_csv(path, index=False)
    message = ""
    with contextlib.chdir(tmp_path):
        try:
            render.draw(PARAMS, experiment, PARAMS["experiments"][experiment]["slice"])
        except InputError as error:
            message = str(error)
    assert "\n" not in message
    assert not message or message.startswith(str(paths.tables(experiment)))


def test_the_code_that_cannot_draw_a_table_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = "modular_subtraction"
    shutil.copytree(ROOT / paths.tables(experiment), tmp_path / paths.tables(experiment))
    for path in (tmp_path / paths.tables(experiment)).glob("*/measure/attention_maps.csv"):
        pd.read_csv(path).iloc[:0].to_csv(path, index=False)
    monkeypatch.chdir(tmp_path)
    place = r"\(\S*experiments/modular_arithmetic/figures/\w+\.py, line \d+\)"
    message = f"tables: the tables do not fit the code: ValueError: need .* {place}; `git checkout`"
    with pytest.raises(InputError, match=message):
        render.draw(PARAMS, experiment, "modular_arithmetic")
