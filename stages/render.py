"""Compare the runs of one experiment and draw its figures, from their tables."""

import importlib
import json
import sys
from collections import defaultdict
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
            table = pd.read_csv(
                path, dtype={"variant": str}, keep_default_na=False, na_values=["", "nan"]
            ).fillna({"variant": ""})
            run = pd.Series(path.relative_to(folder).parts[0], table.index, name="run")
            parts[path.stem].append(pd.concat([run, table], axis=1))
        tables = {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}
        compared = {"metrics": metrics_table(folder)} | figures.compare(tables, settings)
        summary = layout.summary(experiment)
        summary.mkdir(parents=True, exist_ok=True)
        for name, table in compared.items():
            table.to_csv(summary / f"{name}.csv", index=False, float_format=layout.FLOAT_FORMAT)
        drawn = figures.draw(tables | compared, settings)
        write_figures(drawn, layout.figure_json(experiment), layout.figure_png(experiment))


def metrics_table(folder: Path) -> "pd.DataFrame":
    """Every metric of every model of every run, one row each."""
    import pandas as pd

    rows = [
        {"run": path.parent.name, "model": model, "metric": name, "value": value}
        for path in sorted(folder.glob("*/metrics.json"))
        for model, values in json.loads(path.read_text()).items()
        for name, value in values.items()
        if not isinstance(value, list)  # such as the key frequencies: the column is of numbers
    ]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    typer.run(main)
