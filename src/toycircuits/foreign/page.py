"""A page about somebody's own weights: metrics, verdicts, figures and tables."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from toycircuits.claims.card import shown
from toycircuits.core.analyses import load_figures
from toycircuits.core.config import InputError, find_run, read_params, read_section
from toycircuits.core.paths import find_root
from toycircuits.core.plotting import TEMPLATE
from toycircuits.core.render import draw_what_tables_allow
from toycircuits.foreign.analysis import Analysis
from toycircuits.report.page import inline_parts
from toycircuits.report.section import (
    MARKS,
    Figure,
    Table,
    environment,
    read_figure,
    read_shown_table,
)


def figures(analysis: Analysis, root: Path | str | None = None) -> dict[str, go.Figure]:
    """The figures of the experiment that the tables of one model give, by name.

    Args:
        root: the project folder; by default the one around the working folder or this code.
    """
    params = read_params(find_root(root) / "params.yaml") | {"scale": analysis.scale}
    entry = find_run(params, analysis.run).entry
    module = load_figures(entry.slice)
    settings = read_section(params, entry.experiment, "render", module.RenderSettings)
    return draw_what_tables_allow(analysis.tables, settings, module)[1]


def write_page(analysis: Analysis, path: Path, root: Path | str | None = None) -> Path:
    """Write the page to `path`, beside the tables of `analysis.write`; returns `path`.

    The page works offline.

    Args:
        root: as for `figures`.

    Raises:
        InputError: the file cannot be written.
    """
    page = {
        **{"title": f"{analysis.name}, analysed as {analysis.run}", "run": analysis.run},
        **{"facts": _facts(analysis), "metrics": _metrics(analysis)},
        **{"claims": analysis.claims.to_dict("records"), "left_out": analysis.left_out},
        **{"figures": _shown(figures(analysis, root)), "tables": _tables(analysis, path.parent)},
    }
    parts = inline_parts(get_plotlyjs(), TEMPLATE.to_plotly_json())
    html = environment().get_template("analysis.html").render(page=page, marks=MARKS, **parts)
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def _facts(analysis: Analysis) -> dict[str, str]:
    names = {"file": "file", "sha256": "SHA-256 of the file"}
    source = {names[key]: value for key, value in analysis.source.items()}
    variant = {"variant": analysis.variant} if analysis.variant else {}
    notes = {"note": "; ".join(analysis.notes)} if analysis.notes else {}
    return {**source, "run": analysis.run, **variant, "scale": analysis.scale, **notes}


def _metrics(analysis: Analysis) -> list[dict[str, str]]:
    """Rows of text with four digits."""
    rows = analysis.metrics.to_dict("records")
    numbers = ("value", "untrained")
    return [
        {"metric": row["metric"]} | {name: shown(float(row[name]), 4) for name in numbers}
        for row in rows
    ]


def _shown(drawn: Mapping[str, go.Figure]) -> list[Figure]:
    """The figures as the page shows them."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{name}.json" for name in drawn]
        for path, figure in zip(paths, drawn.values(), strict=True):
            path.write_text(figure.to_json(), encoding="utf-8")
        return [read_figure(path) for path in paths]


def _tables(analysis: Analysis, folder: Path) -> list[Table]:
    """The tables as the page shows them, under the names of their files."""
    tables = [read_shown_table(folder / f"{name}.csv") for name in analysis.tables]
    return [replace(table, path=Path(table.path).name) for table in tables]
