"""Compare the runs of one experiment and draw its figures, from their tables."""

import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main(experiment: str, slice_name: str) -> None:
    """Draw EXPERIMENT, whose code is the slice SLICE_NAME."""
    with config.exit_on_bad_input():
        figures = importlib.import_module(f"toycircuits.experiments.{slice_name}.figures")
        params = config.read_params()
        settings = config.read_section(params, experiment, "render", figures.RenderSettings)

        import pandas as pd

        from toycircuits.plotting import write_figures

        folder = layout.tables(experiment)
        parts = defaultdict(list)
        for path in sorted(folder.glob("*/**/*.csv")):
            try:
                table = pd.read_csv(
                    path, dtype={"variant": str}, keep_default_na=False, na_values=["", "nan"]
                ).fillna({"variant": ""})
            except ValueError as error:  # no table in it
                raise config.InputError(f"{path}: {' '.join(str(error).split())}") from None
            run = pd.Series(path.relative_to(folder).parts[0], table.index, name="run")
            parts[path.stem].append(pd.concat([run, table], axis=1))
        tables = {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}
        with missing_named(folder):
            compared = {"metrics": metrics_table(folder)} | figures.compare(tables, settings)
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


def metrics_table(folder: Path) -> "pd.DataFrame":
    """Every metric of every model of every run, one row each."""
    import pandas as pd

    rows = []
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            models = json.loads(path.read_text())
        except ValueError as error:
            raise config.InputError(f"{path}: {error}") from None
        rows += [
            {"run": path.parent.name, "model": model, "metric": name, "value": value}
            for model, values in models.items()
            for name, value in values.items()
            if not isinstance(value, list)  # such as the key frequencies: the column is of numbers
        ]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    typer.run(main)
