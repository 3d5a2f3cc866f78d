"""Draw the figures of one experiment from the tables of all its runs."""

import importlib
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main(experiment: str, slice_name: str) -> None:
    """Draw EXPERIMENT, whose code is the slice SLICE_NAME."""
    with config.exit_on_bad_input():
        scale, tree = config.experiment_tree(config.read_params(), experiment)
        figures = importlib.import_module(f"toycircuits.experiments.{slice_name}.figures")
        key = f"{scale}.{experiment}.render"
        settings = figures.RenderSettings.parse(tree.get("render", {}), key)

        import pandas as pd

        from toycircuits.plotting import write_figures

        folder = layout.tables(experiment)
        parts = defaultdict(list)
        for path in sorted(folder.glob("*/**/*.csv")):
            table = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
            run = pd.Series(path.relative_to(folder).parts[0], table.index, name="run")
            parts[path.stem].append(pd.concat([run, table], axis=1))
        tables = {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}
        drawn = figures.draw(tables, settings)
        write_figures(drawn, layout.figure_json(experiment), layout.figure_png(experiment))


if __name__ == "__main__":
    typer.run(main)
