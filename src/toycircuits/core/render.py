"""The summaries and figures of one experiment, from its tables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from toycircuits.core import config, paths
from toycircuits.core.analyses import load_figures
from toycircuits.core.tables import read_tables


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
        return summaries, figures.draw(tables | summaries, settings)


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
