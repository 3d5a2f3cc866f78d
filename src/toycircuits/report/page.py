"""The whole page: the sections of all experiments, and how each result was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from toycircuits.report.provenance import current_records, duration, seeds_of, stages_of, totals
from toycircuits.report.section import MARKS, PROVENANCE, environment, script_json


def page_html(
    sections: Mapping[str, str],
    titles: Mapping[str, str],
    counts: Mapping[str, Mapping[str, int]],
    records: Mapping[str, Any],
    params: Mapping[str, Any],
    plotly: str,
    template: Mapping[str, Any],
) -> str:
    """The page as one text.

    Args:
        sections: experiment -> its HTML.
        titles: experiment -> its heading.
        counts: experiment -> outcome -> number of claims.
        records: stage -> the record of its last run.
        params: all of params.yaml.
        plotly: source of the Plotly library.
        template: Plotly template of all figures.
    """
    current = current_records(records, params, Path())
    stages = {name: {s: current.get(s) for s in stages_of(name, params)} for name in sections}
    everything = dict(current)
    for records_of_experiment in stages.values():
        everything |= records_of_experiment
    return (
        environment()
        .get_template("page.html")
        .render(
            scale=params["scale"],
            sections={
                name: Markup(text.replace(PROVENANCE, _provenance_html(name, stages[name], params)))
                for name, text in sections.items()
            },
            titles=titles,
            counts=counts,
            marks=MARKS,
            sums={outcome: sum(count[outcome] for count in counts.values()) for outcome in MARKS},
            totals=totals(everything),
            **inline_parts(plotly, template),
        )
    )


def inline_parts(plotly: str, template: Mapping[str, Any]) -> dict[str, Markup]:
    """What every page holds so that it works offline: style, scripts, the figures' template.

    Args:
        plotly: source of the Plotly library.
        template: Plotly template of all figures.
    """
    folder = Path(__file__).parent / "templates"
    return {
        "style": Markup((folder / "page.css").read_text("utf-8")),
        "script": Markup((folder / "page.js").read_text("utf-8")),
        "plotly": Markup(plotly.replace("</script", "<\\/script")),
        "template": Markup(script_json(template)),
    }


def _provenance_html(experiment: str, stages: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """The table of the stages of one experiment. `stages`: stage -> its record, or None."""
    seeds = {stage: seeds_of(stage, params) for stage in stages}
    template = environment().get_template("provenance.html")
    return template.render(experiment=experiment, stages=stages, seeds=seeds, duration=duration)
