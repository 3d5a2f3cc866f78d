"""Figures can be drawn one by one: one without its table does not stop the others."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
import pytest

from toycircuits.core import config, paths, render
from toycircuits.core.analyses import Figures, load_figures
from toycircuits.core.config import InputError, read_params
from toycircuits.core.plotting import Drawing
from toycircuits.core.render import AbsentTableError, Tables, draw_what_tables_allow
from toycircuits.core.tables import MODEL, read_tables

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
PARAMS = read_params(ROOT / "params.yaml")
EXPERIMENTS = {name: entry["slice"] for name, entry in PARAMS["experiments"].items()}
# Figures that exist because of a table that they do not read, by that table.
DECIDED_BY = {("modular_subtraction", "logit_frequencies"): {"embedding_key_gram", "key_waves"}}
# Figures that read a table of several steps and show its last step alone.
OF_THE_LAST_STEP = "circuits_"


class Spy(dict[str, pd.DataFrame]):
    """Tables that remember which of them were asked for.

    Beartype reads the first entry of a mapping, to check its type. So we put one there for it.
    """

    def __init__(self, tables: Mapping[str, pd.DataFrame]) -> None:
        super().__init__({"for beartype": pd.DataFrame(), **tables})
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> pd.DataFrame:
        self.asked |= {name} - {"for beartype"}
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def asked_during(self, call: Callable[[], T]) -> tuple[set[str], T]:
        """What `call` asks for, and what it returns."""
        self.asked = set()
        result = call()
        return self.asked, result


@functools.cache
def loaded(experiment: str) -> tuple[Figures, Any, dict[str, pd.DataFrame]]:
    """The module that draws, its settings, and the tables that git carries, with summaries."""
    figures = load_figures(EXPERIMENTS[experiment])
    with contextlib.chdir(ROOT):
        settings = config.read_section(PARAMS, experiment, "render", figures.RenderSettings)
        tables = read_tables(paths.tables(experiment), config.runs_of(PARAMS, experiment))
    return figures, settings, tables


def with_summaries(experiment: str) -> dict[str, pd.DataFrame]:
    figures, settings, tables = loaded(experiment)
    return tables | figures.summarise(tables, settings)


@functools.cache
def made(experiment: str) -> tuple[set[str], dict[str, tuple[set[str], go.Figure]]]:
    """The tables that decide which figures there are; for each figure what it reads, and it."""
    figures, settings, _ = loaded(experiment)
    spy = Spy(with_summaries(experiment))
    deciding, drawings = spy.asked_during(lambda: figures.draw(spy, settings))
    return deciding, {n: spy.asked_during(drawing.make) for n, drawing in drawings.items()}


def readings(experiment: str) -> dict[str, set[str]]:
    """The tables that each figure reads when it is made."""
    return {name: read for name, (read, _) in made(experiment)[1].items()}


def without(tables: Mapping[str, pd.DataFrame], missing: str) -> Tables:
    return Tables({name: table for name, table in tables.items() if name != missing})


def over_training(experiment: str) -> set[str]:
    figures, settings, _ = loaded(experiment)
    drawings = figures.draw(with_summaries(experiment), settings)
    return {name for name, drawing in drawings.items() if drawing.over_training}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_nothing_is_drawn_before_it_is_asked_for(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, settings, _ = loaded(experiment)
    tables = with_summaries(experiment)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(go.Figure, "__init__", refuse)
    drawings = figures.draw(tables, settings)
    assert drawings
    for drawing in drawings.values():
        with pytest.raises(AssertionError, match="drawn"):
            drawing.make()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_missing_table_stops_the_figures_that_read_it_alone(experiment: str) -> None:
    figures, settings, _ = loaded(experiment)
    tables, read = with_summaries(experiment), readings(experiment)
    assert set().union(*read.values()) <= set(tables)
    for missing in tables:
        drawings = figures.draw(without(tables, missing), settings)
        readers = {name for name, names in read.items() if missing in names}
        gone = set(read) - set(drawings)
        assert gone <= readers | DECIDED_BY.get((experiment, missing), set()), missing
        for name in readers - gone:
            with pytest.raises(AbsentTableError) as error:
                drawings[name].make()
            assert error.value.args == (missing,)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_other_figures_stay_the_same(experiment: str) -> None:
    """A figure that does not ask for a table differs without it only if `draw` does ask for it."""
    figures, settings, _ = loaded(experiment)
    tables, (deciding, before) = with_summaries(experiment), made(experiment)
    for missing in deciding & set(tables):
        for name, drawing in figures.draw(without(tables, missing), settings).items():
            read, figure = before[name]
            if missing not in read and not drawing.over_training:
                assert drawing.make() == figure, (missing, name)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_figures_over_training_are_those_of_several_steps(experiment: str) -> None:
    tables = with_summaries(experiment)
    of_steps = {
        name
        for name, table in tables.items()
        if {"step", *MODEL} <= set(table) and table.groupby(MODEL)["step"].nunique().max() > 1
    }
    assert "training" in of_steps
    expected = {
        name
        for name, names in readings(experiment).items()
        if names & of_steps and not name.startswith(OF_THE_LAST_STEP)
    }
    assert over_training(experiment) == expected


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_the_training_all_figures_of_final_models_are_drawn(experiment: str) -> None:
    figures, settings, tables = loaded(experiment)
    spy = Spy(tables)
    needed, expected = spy.asked_during(lambda: figures.summarise(spy, settings))
    rest = without(tables, "training")
    summaries, drawn = draw_what_tables_allow(rest, settings, figures)
    lost = set(expected) if "training" in needed else set()
    assert set(summaries) == set(expected) - lost
    read = readings(experiment)
    assert list(drawn) == [
        name
        for name in read
        if name not in over_training(experiment) and not read[name] & {"training", *lost}
    ]
    assert drawn


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_any_table_nothing_is_drawn(experiment: str) -> None:
    figures, settings, _ = loaded(experiment)
    assert draw_what_tables_allow({}, settings, figures) == ({}, {})
    for drawing in figures.draw(Tables(), settings).values():
        with pytest.raises(AbsentTableError):
            drawing.make()


def final_models() -> list[tuple[str, str]]:
    return [(name, run) for name in EXPERIMENTS for run in config.runs_of(PARAMS, name)]


@pytest.mark.parametrize(("experiment", "run"), final_models())
def test_figures_of_one_final_model_are_drawn(experiment: str, run: str) -> None:
    """Weights that come from elsewhere have tables of one model at one step, and no training."""
    figures, settings, tables = loaded(experiment)
    one = {}
    for name, table in tables.items():
        rows = table[table["run"] == run]
        if name == "training" or rows.empty:
            continue
        first = rows[MODEL].iloc[0]
        rows = rows[(rows[MODEL] == first).all(axis=1)]
        if "step" in rows and "phase" not in rows:
            rows = rows[rows["step"] == rows["step"].max()]
        one[name] = rows.reset_index(drop=True)
    _, drawn = draw_what_tables_allow(one, settings, figures)
    assert drawn
    for name, figure in drawn.items():
        assert figure.data, name


class Planted:
    """A slice whose only figure may fail in other ways than by a missing table."""

    RenderSettings = config.Settings

    @staticmethod
    def summarise(tables: Any, settings: Any) -> dict[str, pd.DataFrame]:
        return {"last": tables["training"].tail(1)}

    @staticmethod
    def draw(tables: Any, settings: Any) -> dict[str, Drawing]:
        return {
            "column": Drawing(lambda: go.Figure(go.Scatter(y=tables["there"]["value"]))),
            "summary": Drawing(lambda: go.Figure(go.Scatter(y=tables["last"]["value"]))),
            "curve": Drawing(lambda: go.Figure(go.Scatter(y=tables["there"]["no"])), True),
        }


def test_only_a_missing_table_is_excused() -> None:
    there = pd.DataFrame({"value": [1.0]})
    summaries, drawn = draw_what_tables_allow({"there": there}, None, Planted())
    assert (list(summaries), list(drawn)) == ([], ["column"])
    summaries, drawn = draw_what_tables_allow({"there": there, "training": there}, None, Planted())
    assert (list(summaries), list(drawn)) == (["last"], ["column", "summary"])
    with pytest.raises(KeyError, match="value") as error:
        draw_what_tables_allow({"there": there.iloc[:, :0]}, None, Planted())
    assert not isinstance(error.value, AbsentTableError)
    with pytest.raises(KeyError, match="value"):  # of a summary
        draw_what_tables_allow({"there": there, "training": there.iloc[:, :0]}, None, Planted())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_stage_refuses_each_missing_table_that_a_figure_needs(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No figure of an experiment is left out in silence."""
    _, _, tables = loaded(experiment)
    needed = set().union(*readings(experiment).values()) & set(tables)
    assert "training" in needed
    for missing in needed:
        rest = dict(without(tables, missing))
        monkeypatch.setattr(render, "read_tables", lambda *_, rest=rest: rest)
        with pytest.raises(InputError, match=f"a table or column is missing: '{missing}'"):
            render.draw(PARAMS, experiment, EXPERIMENTS[experiment])
