"""Sections and pages made of little, for tests of the page."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from toycircuits.claims.verdict import COLUMNS, count_outcomes, read_verdicts, write_verdicts
from toycircuits.core.plotting import TEMPLATE
from toycircuits.report import section
from toycircuits.report.page import page_html

HOSTILE = '<script>alert(1)</script> & "quotes" \''


def write_experiment(folder: Path) -> Path:
    """Write two figures and a table to `folder`, with texts that look like markup."""
    for order, name in enumerate(["second", "first"]):
        figure = go.Figure(go.Scatter(x=[1], y=[2], name=HOSTILE))
        figure.update_layout(title=HOSTILE, width=1000, height=300, meta={"order": 1 - order})
        (folder / f"{name}.json").write_text(figure.to_json())
    rows = [[HOSTILE, "0.123456789", "12345678", "-7"]] * 70
    pd.DataFrame(rows, columns=["a", "b", "c", HOSTILE]).to_csv(folder / "t.csv", index=False)
    return folder


def made_section(experiment: Path, text: str = HOSTILE, **cells: list[Any]) -> str:
    """A section with `text` in every place for text, and one claim of each outcome.

    Args:
        cells: column of the verdicts -> its three cells.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS, text)
    row |= {"kind": "exact", "published": None, "models": 2, "passing": 1}
    rows = [
        row
        | {"id": outcome.replace(" ", "_"), "outcome": outcome}
        | {column: values[number] for column, values in cells.items()}
        for number, outcome in enumerate(section.MARKS)
    ]
    # The stages write and read verdicts like this.
    write_verdicts(experiment / "claims.csv", rows)
    verdicts = read_verdicts(experiment / "claims.csv")
    return section.section_html(
        section.Section(
            experiment="e",
            title=text,
            question=text,
            method=[text],
            counts=count_outcomes(verdicts["outcome"]),
            verdicts=verdicts,
            figures=section.read_figures(experiment),
            tables=[section.read_shown_table(experiment / "t.csv")],
            settings={text: json.dumps(text)},
        )
    )


def made_page(
    sections: dict[str, str],
    records: dict[str, Any],
    params: dict[str, Any] | None = None,
    plotly: str = "",
) -> str:
    """The page of `sections`, whose experiments have no runs."""
    no_runs = {
        **{"scale": "quick", "runs": {}, "released": []},
        "experiments": {name: {} for name in sections},
        "quick": {name: {"data": {}} for name in sections},
    }
    counts = {name: dict.fromkeys(section.MARKS, 1) for name in sections}
    titles = dict.fromkeys(sections, HOSTILE)
    template = TEMPLATE.to_plotly_json()
    return page_html(sections, titles, counts, records, params or no_runs, plotly, template)


def record(**changes: Any) -> dict[str, Any]:
    """The record of a stage, with some fields changed."""
    base: dict[str, Any] = {"deps": [], "outs": [], "params": {"params.yaml": {"scale": "quick"}}}
    base |= {"seconds": 1.0, "processor_seconds": 1.0, "attempts": 1, "commit": "", "edited": False}
    base |= {"processor": "P", "cores": 2, "system": "S", "python": "3", "torch": "2", "gpus": []}
    return base | changes
