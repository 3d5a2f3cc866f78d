"""The summaries and figures of one experiment, from its tables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from toycircuits.core import config, paths
from toycircuits.core.slices import load_figures
from toycircuits.core.tables import read_tables


def draw(
    params: Mapping[str, Any], experiment: str, slice_name: str
) -> tuple[dict[str, pd.DataFrame], dict[str, go.Figure]]:
    """Summaries over the runs of `experiment`, and its figures, both by name.

    Args:
        params: all of params.yaml.
        slice_name: the slice whose code draws.

    Raises:
        InputError: the settings are not valid, or a table or a column is not there.
    """
    figures = load_figures(slice_name)
    settings = config.read_section(params, experiment, "render", figures.RenderSettings)

    folder = paths.tables(experiment)
    tables = read_tables(folder, config.runs_of(params, experiment))
    with _missing_named(folder):
        summaries = figures.summarise(tables, settings)
        return summaries, figures.draw(tables | summaries, settings)


@contextmanager
def _missing_named(folder: Path) -> Iterator[None]:
    """Turn the absence of a table or column that a figure needs into one line.

    Raises:
        InputError: a table is not in `folder`, or pandas or plotly does not find a column.
    """
    try:
        yield
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and "is not the name of a column" not in reason:
            raise
        text = (
            f"a table or column is missing: {reason}; `toycircuits repro --force` makes them again"
        )
        raise config.InputError(f"{folder}: {text}") from error
