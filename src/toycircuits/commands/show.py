"""What there is, in a terminal: `toycircuits list` and `toycircuits show`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from toycircuits.claims.card import read_card
from toycircuits.claims.lookup import tables_of, values
from toycircuits.claims.verdict import OUTCOMES
from toycircuits.commands.fresh import absent, outdated
from toycircuits.core import paths
from toycircuits.core.config import SECTIONS, InputError, Run, RunValues, find_run

STATES = {"fresh": "green", "stale": "yellow", "missing": "red"}
NOT_HERE = (
    "trajectories of weights are not here: `dvc pull` brings them from a remote, "
    "`toycircuits repro` trains all again"
)
MARKS = {"not reproduced": "red", "reproduced": "green", "not comparable": "dim"}  # in this order


def sections(run: Run, variant: str = "") -> dict[str, dict[str, Any]]:
    """The settings of `run` as plain values, its own laid over those of its experiment."""
    at_scale = run.entry.scales.get(run.scale, RunValues())
    merged = {}
    for name in SECTIONS:
        layers = [getattr(run.entry, name, {}), getattr(at_scale, name, {})]
        if name == "model" and variant:
            layers.append(run.entry.variants[variant])
        merged[name] = dict(run.tree.get(name, {}))
        for layer in layers:
            merged[name] |= layer
    return merged


def state(run: Run, stages: set[str]) -> str:
    """Whether the results of `run` are there, and belong to code and settings.

    Args:
        stages: those that would run.
    """
    if not (paths.tables(run.entry.experiment) / run.name / "training.csv").exists():
        return "missing"
    own = {f"{stage}@{run.name}" for stage in ("train", "measure", "ablate")}
    return "stale" if own & stages or f"generate@{run.entry.experiment}" in stages else "fresh"


def listing(params: Mapping[str, Any], root: Path) -> Table:
    """All experiments and runs, at the scale of params.yaml, and the state of each.

    An experiment is stale with any of its runs: what it shows is made of them all.

    Raises:
        InputError: a setting, or DVC cannot tell what is up to date.
    """
    stages = outdated(root)
    table = Table(title=f"scale: {params['scale']}", title_justify="left", box=None, pad_edge=False)
    for name in ("experiment, run", "models", "state", "claims reproduced"):
        table.add_column(name, justify="right" if name == "models" else "left")
    for experiment in params["experiments"]:
        told = _claims(experiment)
        runs = [(run, state(run, stages)) for run in _runs(params, experiment)]
        own = {f"{stage}@{experiment}" for stage in ("generate", "render", "check", "section")}
        behind = own & stages or any(found != "fresh" for _, found in runs)
        overall = "missing" if told is None else "stale" if behind else "fresh"
        holds = "" if told is None else f"{(told['outcome'] == 'reproduced').sum()} of {len(told)}"
        table.add_row(f"[bold]{experiment}", "", _coloured(overall, STATES), holds)
        for run, found in runs:
            seeds = sections(run)["train"]["weight_seeds"]
            models = len(run.variants) * len(seeds)
            table.add_row(f"  {run.name}", str(models), _coloured(found, STATES), "")
    if absent(root):
        table.caption, table.caption_justify = NOT_HERE, "left"
    return table


def description(params: Mapping[str, Any], name: str) -> RenderableType:
    """Settings, metrics, claims and files of a run, or of an experiment.

    Raises:
        InputError: there is neither a run nor an experiment of this name.
    """
    runs, experiments = params["runs"], params["experiments"]
    if name not in runs and name not in experiments:
        allowed = ", ".join(dict.fromkeys([*experiments, *runs]))
        raise InputError(f"found {name!r}; there are: {allowed}")
    parts: list[RenderableType] = []
    if name in runs:
        run = find_run(params, name)
        experiment = run.entry.experiment
        parts += [_settings(run), *_metrics(experiment, name)]
    else:
        experiment = name
    if others := [run.name for run in _runs(params, experiment) if run.name != name]:
        parts.append(f"[bold]runs of {experiment}[/]\n  {', '.join(others)}\n")
    parts += _claim_rows(experiment, name if name in runs and name != experiment else None)
    places = {
        "tables": paths.tables(experiment) / (name if name in runs else ""),
        "figures": paths.figure_png(experiment),
        "weights": paths.weights_file(name),
        "claims": Path(f"claims/{experiment}.yaml"),
        "page": paths.REPORTS / "index.html",
    }
    there = [f"  {what:8} {place}" for what, place in places.items() if place.exists()]
    return Group(*parts, "[bold]files[/]", *there)


def _runs(params: Mapping[str, Any], experiment: str) -> Iterator[Run]:
    for name in params["runs"]:
        run = find_run(params, name)
        if run.entry.experiment == experiment:
            yield run


def _claims(experiment: str) -> pd.DataFrame | None:
    file = paths.REPORTS / experiment / "claims.csv"
    return pd.read_csv(file, dtype=str, keep_default_na=False) if file.exists() else None


def _coloured(text: str, colours: Mapping[str, str]) -> str:
    return f"[{colours[text]}]{text}[/]"


def _settings(run: Run) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    for section, own in sections(run).items():
        if section != "render":  # of drawing: what to show beside the measured values
            rows.add_row(f"  {section}", _listed(own))
    for variant, own in run.entry.variants.items():
        rows.add_row("  variant", f"{variant}: {_listed(own)}")
    return Group(f"[bold]settings[/] (scale: {run.scale})", rows, "")


def _listed(own: Mapping[str, Any]) -> str:
    return escape(", ".join(f"{key}: {json.dumps(value)}" for key, value in own.items())) or "-"


def _metrics(experiment: str, run: str) -> list[RenderableType]:
    """What the file of claims holds to be the few numbers that matter, for each model of `run`."""
    card = Path(f"claims/{experiment}.yaml")
    if not (paths.tables(experiment) / run).exists() or not card.exists():
        return []
    tables = tables_of(paths.REPORTS / experiment)
    columns = {}
    for name, measured in read_card(card).key_metrics.items():
        try:
            found = values(measured, tables)
        except InputError:
            continue  # of other settings
        if "run" in found.index.names:
            found = found[found.index.get_level_values("run") == run].droplevel("run")
            if len(found):
                columns[name] = found
    if not columns:
        return []
    told = Table("variant", "seed", *columns, title="metrics", title_justify="left", box=None)
    for place, row in pd.DataFrame(columns).iterrows():
        variant, seed = place if isinstance(place, tuple) else ("", place)
        told.add_row(str(variant), str(seed), *(f"{value:.6g}" for value in row))
    return [told, ""]


def _claim_rows(experiment: str, run: str | None) -> list[RenderableType]:
    """Claims of the experiment and their outcomes; of those about named runs, those about `run`.

    Those that fail come first, each with the reason.
    """
    told = _claims(experiment)
    if told is None:
        return ["[bold]claims[/]\n  not checked yet: `toycircuits repro`\n"]
    cards = {claim.id: claim for claim in read_card(Path(f"claims/{experiment}.yaml")).claims}

    def about(claim_id: str) -> bool:
        named = cards[claim_id].measured.where.get("run") if claim_id in cards else None
        return (
            run is None or named is None or run in (named if isinstance(named, list) else [named])
        )

    told = told[told["id"].map(about)]
    counts = [f"{(told['outcome'] == outcome).sum()} {outcome}" for outcome in OUTCOMES]
    rows = Table(box=None, pad_edge=False)
    rows.add_column("")
    rows.add_column("claim", min_width=44)
    for name in ("published", "expected", "measured"):
        rows.add_column(name, overflow="fold")
    rows.add_column("models", no_wrap=True)
    told = told.sort_values("outcome", key=lambda of: of.map([*MARKS].index), kind="stable")
    for row in told.to_dict("records"):
        why = f"\n[dim]why not: {escape(row['why'])}[/]" if row["why"] else ""
        cells = [escape(str(row[key])) for key in ("published", "expected", "measured")]
        passing = f"{row['passing']} of {row['models']}" if row["passing"] else row["models"]
        outcome = _coloured(row["outcome"], MARKS)
        rows.add_row(outcome, escape(row["statement"]) + why, *cells, str(passing))
    return [f"[bold]claims of {experiment}[/] {', '.join(counts)}", rows, ""]
