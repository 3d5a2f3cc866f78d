"""Write one experiment's part of the page."""

import json

import typer

from toycircuits.core import config, paths, report_paths
from toycircuits.core.stage import Name, stage


def main(experiment: Name) -> None:
    """Write what the page says about EXPERIMENT."""
    with stage():
        from toycircuits.claims.card import read_card
        from toycircuits.claims.verdict import count_outcomes, read_verdicts
        from toycircuits.core.tables import table_files
        from toycircuits.report import section

        params = config.read_params()
        config.experiment_tree(params, experiment)  # refuses an experiment that there is not
        card = read_card(report_paths.claims_file(experiment))
        verdicts = read_verdicts(report_paths.claims_table(experiment))
        counts = count_outcomes(verdicts["outcome"])
        tables = table_files(report_paths.summary(experiment))
        for run in sorted(config.runs_of(params, experiment)):
            tables.append(paths.tables(experiment) / run / "ablations.csv")
        html = section.section_html(
            section.Section(
                experiment=experiment,
                title=card.title,
                question=card.question,
                method=card.method,
                counts=counts,
                verdicts=verdicts,
                figures=section.read_figures(report_paths.figure_json(experiment)),
                tables=[section.read_shown_table(path) for path in tables],
                settings=section.settings_of(params, experiment),
            )
        )
        target = report_paths.section(experiment)
        target.mkdir(parents=True, exist_ok=True)
        (target / "section.html").write_text(html, encoding="utf-8")
        summary = {"title": card.title, "counts": counts}
        (target / "summary.json").write_text(json.dumps(summary) + "\n")


if __name__ == "__main__":
    typer.run(main)
