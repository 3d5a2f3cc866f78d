"""Compare the runs of one experiment and draw its figures, from their tables."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main(experiment: str, slice_name: str) -> None:
    """Draw EXPERIMENT, whose code is the slice SLICE_NAME."""
    with config.exit_on_bad_input():
        from toycircuits.drawing import draw
        from toycircuits.plotting import write_figures

        compared, drawn = draw(config.read_params(), experiment, slice_name)
        summary = layout.summary(experiment)
        summary.mkdir(parents=True, exist_ok=True)
        for name, table in compared.items():
            table.to_csv(summary / f"{name}.csv", index=False, float_format=layout.FLOAT_FORMAT)
        kept = layout.RESUME / "pictures" / experiment
        write_figures(drawn, layout.figure_json(experiment), layout.figure_png(experiment), kept)


if __name__ == "__main__":
    typer.run(main)
