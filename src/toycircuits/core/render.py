"""The summaries and figures of one experiment, from its tables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from toycircuits.core import config, paths
from toycircuits.core.analyses import Figures, load_figures
from toycircuits.core.tables import read_tables


class AbsentTableError(KeyError):
    """A table that is not there. Its argument is the table's name."""


class Tables(dict[str, pd.DataFrame]):
    """Tables by name. One that is not there raises `AbsentTableError`."""

    def __missing__(self, name: str) -> pd.DataFrame:
        raise AbsentTableError(name)


def draw(
    params: Mapping[str, Any], experiment: str, slice_name: str
) -> tuple[dict[str, pd.DataFrame], dict[str, go.Figure]]:
    """Summaries over the runs of `experiment`, and its figures, both by name.

    Args:
        params: all of params.yaml.
        slice_name: the slice whose code draws.

    Raises:
        InputError: the settings are not valid, or a table or a column is not there, or the code of
            the slice cannot draw what is in a table.
    """
    figures = load_figures(slice_name)
    settings = config.read_section(params, experiment, "render", figures.RenderSettings)

    folder = paths.tables(experiment)
    tables = read_tables(folder, config.runs_of(params, experiment))
    with _faults_named(folder):
        summaries = figures.summarise(tables, settings)
        drawings = figures.draw(tables | summaries, settings)
        return summaries, {name: drawing.make() for name, drawing in drawings.items()}


def draw_what_tables_allow(
    tables: Mapping[str, pd.DataFrame], settings: Any, figures: Figures
) -> tuple[dict[str, pd.DataFrame], dict[str, go.Figure]]:
    """The summaries and figures of models whose training is not known, both by name.

    A figure over training is left out, and so is one that needs a table that is not there. There
    are no summaries if any of them needs such a table. All other errors of the slice's code are
    raised: a table that is there must have its columns.

    Args:
        tables: as `read_tables` returns them, some of them missing.
        settings: the `RenderSettings` of `figures`.
        figures: the module of a slice that draws.
    """
    summaries: dict[str, pd.DataFrame] = {}
    with suppress(AbsentTableError):
        summaries = figures.summarise(Tables(tables), settings)
    drawn: dict[str, go.Figure] = {}
    for name, drawing in figures.draw(Tables({**tables, **summaries}), settings).items():
        if not drawing.over_training:
            with suppress(AbsentTableError):
                drawn[name] = drawing.make()
    return summaries, drawn


@contextmanager
def _faults_named(folder: Path) -> Iterator[None]:
    """Turn an error of the slice's code, which is about the content of tables, into one line.

    Raises:
        InputError: a table is not in `folder`, a column is not in its table, or the values are not
            what the code expects.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())
        is_missing = isinstance(error, KeyError) or "is not the name of a column" in reason
        problem = "a table or column is missing" if is_missing else "the tables do not fit the code"
        reason = reason if is_missing else f"{type(error).__name__}: {reason}"
        again = "`git checkout` restores them, `toycircuits repro --force` makes them again"
        text = f"{problem}: {reason}{_place(error.__traceback__)}; {again}"
        raise config.InputError(f"{folder}: {text}") from error


def _place(trace: TracebackType | None) -> str:
    """Where the slice's code failed: ` (FILE, line N)`, or nothing if it did not."""
    frames = [frame for frame in extract_tb(trace) if "/experiments/" in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
