"""Judge the claims about one experiment by its tables."""

import json

import typer

from toycircuits.core import config, paths, report_paths
from toycircuits.core.stage import Name, stage


def main(experiment: Name) -> None:
    """Write the verdicts on the claims about EXPERIMENT, and its key metrics."""
    with stage():
        from toycircuits.claims.card import read_card
        from toycircuits.claims.lookup import tables_of
        from toycircuits.claims.verdict import (
            count_outcomes,
            judge_all,
            key_metrics,
            write_verdicts,
        )

        params = config.read_params()
        scale, _ = config.experiment_tree(params, experiment)
        file = report_paths.claims_file(experiment)
        card = read_card(file)
        tables = tables_of(paths.REPORTS / experiment, config.runs_of(params, experiment))
        verdicts = judge_all(card, tables, scale, file)
        metrics = key_metrics(card, tables, file)
        counts = count_outcomes(verdict["outcome"] for verdict in verdicts)
        by_outcome = {outcome.replace(" ", "_"): number for outcome, number in counts.items()}
        write_verdicts(report_paths.claims_table(experiment), verdicts)
        text = json.dumps({"claims": by_outcome, **metrics}, indent=1)
        report_paths.metrics_file(experiment).write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
