"""Summarise the runs of one experiment and draw its figures, from their tables."""

import typer

from toycircuits.core import config, paths, report_paths
from toycircuits.core.portable import pin
from toycircuits.core.stage import Name, stage


def main(experiment: Name) -> None:
    """Draw EXPERIMENT."""
    with stage():
        params = config.read_params()
        pin(params)  # before the libraries are imported
        from toycircuits.core.pictures import write_figures
        from toycircuits.core.render import draw

        summaries, drawn = draw(params, experiment, config.find_slice(params, experiment))
        summary = report_paths.summary(experiment)
        summary.mkdir(parents=True, exist_ok=True)
        for name, table in summaries.items():
            table.to_csv(summary / f"{name}.csv", index=False, float_format=paths.FLOAT_FORMAT)
        known = paths.RESUME / "pictures" / experiment
        write_figures(
            drawn, report_paths.figure_json(experiment), report_paths.figure_png(experiment), known
        )


if __name__ == "__main__":
    typer.run(main)
