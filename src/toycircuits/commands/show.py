"""`toycircuits show`: settings, metrics, claims and files of a run or an experiment."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from toycircuits.claims.card import read_card
from toycircuits.claims.lookup import tables_of, values
from toycircuits.claims.verdict import count_outcomes, read_verdicts
from toycircuits.core import paths, report_paths
from toycircuits.core.config import SECTIONS, InputError, Run, find_run, runs_of
from toycircuits.core.messages import escaped, quoted

COLORS = {"not reproduced": "red", "reproduced": "green", "not comparable": "dim"}  # in this order


def description(params: Mapping[str, Any], name: str) -> RenderableType:
    """Settings, metrics, claims and files of the run or the experiment `name`.

    Raises:
        InputError: there is neither a run nor an experiment of this name, or a setting is wrong.
    """
    runs, experiments = params["runs"], params["experiments"]
    if name not in runs and name not in experiments:
        allowed = ", ".join(dict.fromkeys([*experiments, *runs]))
        raise InputError(f"found {quoted(name)}; there are: {allowed}")
    parts: list[RenderableType] = []
    if name in runs:
        run = find_run(params, name)
        experiment = run.entry.experiment
        parts += [_settings(run), *_metrics(params, experiment, name)]
    else:
        experiment = name
    others = [run for run, entry in runs.items() if entry["experiment"] == experiment]
    if others := [run for run in others if run != name]:
        parts.append(f"[bold]runs of {experiment}[/]\n  {', '.join(others)}\n")
    parts += _claims(experiment, name if name in runs and name != experiment else None)
    return Group(*parts, "[bold]files[/]", *_files(experiment, name, name in runs))


def plain(value: object) -> Text:
    r"""`value` as text that a terminal shows as it is: no markup, no emoji, no control characters.

    >>> plain("[red]:smile: \x1b[31m").plain
    '[red]:smile: \\x1b[31m'
    """
    return Text(escaped(str(value)))


def settings_of(run: Run, variant: str = "") -> dict[str, dict[str, Any]]:
    """The settings of `run` by section, as plain values.

    Raises:
        InputError: a section is missing.
    """
    return {section: run.values(section, variant)[0] for section in SECTIONS}


def _settings(run: Run) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    for section, settings in settings_of(run).items():
        if section != "render":  # it says how to draw, and nothing about the run
            rows.add_row(f"  {section}", plain(_in_a_line(settings)))
    for variant, settings in run.entry.variants.items():
        rows.add_row("  variant", plain(f"{variant}: {_in_a_line(settings)}"))
    return Group(f"[bold]settings[/] (scale: {run.scale})", rows, "")


def _in_a_line(settings: Mapping[str, Any]) -> str:
    texts = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    return ", ".join(texts) or "-"


def _metrics(params: Mapping[str, Any], experiment: str, run: str) -> list[RenderableType]:
    """The key metrics of the experiment's file of claims, for each model of `run`."""
    card = report_paths.claims_file(experiment)
    if not (paths.tables(experiment) / run).exists() or not card.exists():
        return []
    runs = runs_of(params, experiment)
    here = [name for name in runs if paths.exists(paths.tables(experiment) / name)]
    tables = tables_of(paths.REPORTS / experiment, here)
    columns = {}
    for name, measured in read_card(card).key_metrics.items():
        try:
            by_model = values(measured, tables)
        except InputError:
            continue  # the tables do not have it under changed settings
        if "run" in by_model.index.names:
            by_model = by_model[by_model.index.get_level_values("run") == run].droplevel("run")
            if len(by_model):
                columns[name] = by_model
    if not columns:
        return []
    headings = [plain(name) for name in ("variant", "seed", *columns)]
    rows = Table(*map(Column, headings), title="metrics", title_justify="left", box=None)
    for model, row in pd.DataFrame(columns).iterrows():
        variant, seed = model if isinstance(model, tuple) else ("", model)
        rows.add_row(plain(variant), str(seed), *(f"{value:.6g}" for value in row))
    return [rows, ""]


def _claims(experiment: str, run: str | None) -> list[RenderableType]:
    """The claims of the experiment and their outcomes, those that fail first, with the reason.

    Args:
        run: leave out claims about other runs than this one; by default, show all claims.
    """
    if not (file := report_paths.claims_table(experiment)).exists():
        return ["[bold]claims[/]\n  not judged yet: `toycircuits repro` does it\n"]
    verdicts = read_verdicts(file)
    verdicts = verdicts[verdicts["id"].isin(_claims_about(experiment, run, verdicts["id"]))]
    counts = count_outcomes(verdicts["outcome"])
    heading = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    rows = Table(box=None, pad_edge=False)
    rows.add_column("")
    rows.add_column("claim", min_width=44)
    for name in ("published", "expected", "measured"):
        rows.add_column(name, overflow="fold")
    rows.add_column("models", no_wrap=True)
    order = [*COLORS].index
    verdicts = verdicts.sort_values("outcome", key=lambda of: of.map(order), kind="stable")
    for row in verdicts.to_dict("records"):
        statement = plain(row["statement"])
        if row["why"]:
            statement.append(escaped(f"\nwhy not: {row['why']}"), style="dim")
        cells = [plain(row[key]) for key in ("published", "expected", "measured")]
        passing = f"{row['passing']} of {row['models']}" if row["passing"] else row["models"]
        outcome = f"[{COLORS[row['outcome']]}]{row['outcome']}[/]"
        rows.add_row(outcome, statement, *cells, plain(passing))
    return [f"[bold]claims of {experiment}[/] {heading}", rows, ""]


def _claims_about(experiment: str, run: str | None, ids: "pd.Series[str]") -> list[str]:
    """Those of the claims `ids` that are about `run`, or that name no run."""
    cards = {claim.id: claim for claim in read_card(report_paths.claims_file(experiment)).claims}
    about = []
    for claim in ids:
        named = cards[claim].measured.where.get("run") if claim in cards else None
        if run is None or named is None or run in (named if isinstance(named, list) else [named]):
            about.append(claim)
    return about


def _files(experiment: str, name: str, is_run: bool) -> list[str]:
    places: dict[str, Path] = {
        "tables": paths.tables(experiment) / (name if is_run else ""),
        "figures": report_paths.figure_png(experiment),
        "weights": paths.weights_file(name),
        "claims": report_paths.claims_file(experiment),
        "page": report_paths.PAGE,
    }
    return [f"  {what:8} {place}" for what, place in places.items() if place.exists()]
