"""Write one experiment's part of the page."""

import json
from pathlib import Path

import typer

from toycircuits.core import config, paths


def main(experiment: str) -> None:
    """Write what the page says of EXPERIMENT."""
    with config.exit_on_bad_input():
        from toycircuits.claims.card import read_card
        from toycircuits.report import section

        params = config.read_params()
        folder = paths.tables(experiment).parent
        tables = sorted(paths.summary(experiment).glob("*.csv"))
        tables += sorted(paths.tables(experiment).glob("*/ablations.csv"))
        card = read_card(Path("claims") / f"{experiment}.yaml")
        claims = section.read_claims(folder / "claims.csv")
        text = section.section(
            experiment,
            card,
            claims,
            section.read_figures(paths.figure_json(experiment)),
            [section.read_shown_table(path) for path in tables],
            section.settings_of(params, experiment),
        )
        target = section.folder(experiment)
        target.mkdir(parents=True, exist_ok=True)
        (target / "section.html").write_text(text)
        summed = {"title": card.title, "counts": section.counts(claims)}
        (target / "summary.json").write_text(json.dumps(summed) + "\n")


if __name__ == "__main__":
    typer.run(main)
