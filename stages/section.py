"""Write one experiment's part of the page."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main(experiment: str) -> None:
    """Write what the page says of EXPERIMENT."""
    with config.exit_on_bad_input():
        from toycircuits.claims import read_card
        from toycircuits.report import section

        params = config.read_params()
        folder = layout.tables(experiment).parent
        tables = sorted(layout.summary(experiment).glob("*.csv"))
        tables += sorted(layout.tables(experiment).glob("*/ablations.csv"))
        card = read_card(Path("claims") / f"{experiment}.yaml")
        claims = section.read_claims(folder / "claims.csv")
        text = section.section(
            experiment,
            card,
            claims,
            section.read_figures(layout.figure_json(experiment)),
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
