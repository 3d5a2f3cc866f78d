"""Judge the claims about one experiment by its tables."""

import json
from pathlib import Path

import typer

from toycircuits.core import config, paths


def main(experiment: str) -> None:
    """Write what became of the claims of EXPERIMENT, and its few most telling numbers."""
    with config.exit_on_bad_input():
        from toycircuits.claims.card import read_card
        from toycircuits.claims.lookup import mean_over_models, tables_of
        from toycircuits.claims.verdict import count_outcomes, judge, write_verdicts

        scale = str(config.read_params()["scale"])
        path = Path("claims") / f"{experiment}.yaml"
        card = read_card(path)
        folder = paths.REPORTS / experiment
        tables = tables_of(folder)
        rows, key_metrics = [], {}
        for claim in card.claims:
            with config.at_key(f"{path}: {claim.id}"):
                rows.append(judge(claim, tables, scale))
        for name, measured in card.key_metrics.items():
            with config.at_key(f"{path}: key_metrics.{name}"):
                mean = mean_over_models(measured, tables)
            key_metrics[name] = None if mean is None else float(f"{mean:.6g}")
        write_verdicts(folder / "claims.csv", rows)
        counts = count_outcomes(row["outcome"] for row in rows)
        by_outcome = {name.replace(" ", "_"): number for name, number in counts.items()}
        text = json.dumps({"claims": by_outcome, **key_metrics}, indent=1)
        (folder / "metrics.json").write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
