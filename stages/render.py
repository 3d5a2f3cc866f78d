"""Compare the runs of one experiment and draw its figures, from their tables."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main(experiment: str, slice_name: str) -> None:
    """Draw EXPERIMENT, whose code is the slice SLICE_NAME."""
    with config.exit_on_bad_input():
        figures = importlib.import_module(f"toycircuits.experiments.{slice_name}.figures")
        params = config.read_params()
        settings = config.read_section(params, experiment, "render", figures.RenderSettings)

        from toycircuits.plotting import write_figures
        from toycircuits.tables import read_tables

        folder = layout.tables(experiment)
        tables = read_tables(folder)
        with missing_named(folder):
            compared = figures.compare(tables, settings)
            drawn = figures.draw(tables | compared, settings)
        summary = layout.summary(experiment)
        summary.mkdir(parents=True, exist_ok=True)
        for name, table in compared.items():
            table.to_csv(summary / f"{name}.csv", index=False, float_format=layout.FLOAT_FORMAT)
        kept = layout.RESUME / "pictures" / experiment
        write_figures(drawn, layout.figure_json(experiment), layout.figure_png(experiment), kept)


@contextmanager
def missing_named(folder: Path) -> Iterator[None]:
    """Say in one line which table or column a figure did not find in `folder`.

    Raises:
        InputError: pandas knows no such column, plotly no such column, or there is no such table.
    """
    try:
        yield
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and "is not the name of a column" not in reason:
            raise
        text = f"a table or column is missing: {reason}; `dvc repro --force` makes them anew"
        raise config.InputError(f"{folder}: {text}") from error


if __name__ == "__main__":
    typer.run(main)
