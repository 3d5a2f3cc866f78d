"""Two revisions, `dvc exp` experiments or runs side by side: `toycircuits compare`."""

import csv
import html
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from toycircuits.commands.show import sections
from toycircuits.core import paths
from toycircuits.core.config import InputError, find_run, read_params
from toycircuits.core.plotting import COLORS, TEMPLATE, bare_facets
from toycircuits.core.tables import read_table
from toycircuits.revisions import Files

WORKSPACE = "workspace"
ABSENT = "-"


@dataclass(frozen=True)
class Side:
    """What is compared.

    Attributes:
        name: as it was given.
        params: key path -> value.
        metrics: name -> value.
        claims: experiment and id -> outcome, measured value and statement.
        curves: run -> its training log.
        run: which one it is, if it is one run of the workspace, and no revision.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    claims: Mapping[tuple[str, str], Mapping[str, str]]
    curves: Mapping[str, pd.DataFrame]
    run: str | None = None


def sides(root: Path, names: tuple[str, str]) -> tuple[Side, Side]:
    """What `names` stand for: two runs, or two of revisions, experiments and "workspace".

    Raises:
        InputError: one of them is none of these, or they are of different kinds.
    """
    params = read_params(root / "params.yaml")
    runs = [name in params["runs"] for name in names]
    if all(runs):
        return _run(root, params, names[0]), _run(root, params, names[1])
    if any(runs) and WORKSPACE in names:
        raise InputError(f"compare: found {' and '.join(names)}; two runs, or two revisions")
    return _revision(root, names[0]), _revision(root, names[1])


def _revision(root: Path, name: str) -> Side:
    with tempfile.TemporaryDirectory() as scratch:
        files = Files(root, None if name == WORKSPACE else name, Path(scratch))
        file = files.get(Path("params.yaml"))
        if file is None:
            raise InputError(f"compare: {name}: no params.yaml there")
        params = read_params(file)
        metrics: dict[str, float] = {}
        claims: dict[tuple[str, str], dict[str, str]] = {}
        curves: dict[str, pd.DataFrame] = {}
        for experiment in params["experiments"]:
            if file := files.get(paths.REPORTS / experiment / "metrics.json"):
                told = _flat(json.loads(file.read_text()))
                metrics |= {f"{experiment}.{key}": value for key, value in told.items()}
            if file := files.get(paths.REPORTS / experiment / "claims.csv"):
                with file.open(encoding="utf-8", newline="") as lines:
                    claims |= {(experiment, row["id"]): row for row in csv.DictReader(lines)}
        for run, entry in params["runs"].items():
            if file := files.get(paths.tables(entry["experiment"]) / run / "training.csv"):
                curves[run] = read_table(file)
        return Side(name, _flat(params), metrics, claims, curves)


def _run(root: Path, params: Mapping[str, Any], name: str) -> Side:
    run = find_run(params, name)
    folder = root / paths.tables(run.entry.experiment) / name
    if not (folder / "training.csv").exists():
        raise InputError(f"compare: {name}: no results yet; `toycircuits repro measure@{name}`")
    training = read_table(folder / "training.csv")
    last = training.groupby(["variant", "seed"]).tail(1).drop(columns=["variant", "seed", "step"])
    metrics = {f"training.{key}": float(value) for key, value in last.mean().items()}
    if (folder / "measure/metrics.csv").exists():
        told = read_table(folder / "measure/metrics.csv")
        means = told.groupby("metric", sort=False)["value"].mean()
        metrics |= {str(key): float(value) for key, value in means.items()}
    own: dict[str, Any] = sections(run)
    variants = {f"variants.{key}": value for key, value in run.entry.variants.items()}
    return Side(name, _flat(own | variants), metrics, {}, {name: training}, name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True)
class Difference:
    """What differs between two sides, of one kind.

    Attributes:
        title: what it is about.
        names: of both sides.
        rows: what it is about, and what it is on either side; "-" where there is none.
    """

    title: str
    names: tuple[str, str]
    rows: list[tuple[str, str, str]]


def differences(a: Side, b: Side) -> list[Difference]:
    """Params, metrics, claims and runs that differ; claims only where a side has any.

    Metrics of a run are means over its models.
    """
    names = a.name, b.name
    found = []
    metrics = "metrics" if a.run is None else "metrics (means over models)"
    for title, old, new in (("params", a.params, b.params), (metrics, a.metrics, b.metrics)):
        both = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in {**old, **new}}
        differ = {key: pair for key, pair in both.items() if repr(pair[0]) != repr(pair[1])}
        rows = [(key, *_texts(*pair)) for key, pair in differ.items()]
        found.append(Difference(title, names, rows))
    if a.claims or b.claims:
        rows = [("reproduced", _reproduced(a), _reproduced(b))]
        for key in {**a.claims, **b.claims}:
            judged = [side.claims.get(key) for side in (a, b)]
            told = [f"{row['outcome']} ({row['measured']})" if row else ABSENT for row in judged]
            if len({row["outcome"] if row else ABSENT for row in judged}) > 1:
                (statement, *_) = [row["statement"] for row in reversed(judged) if row]
                rows.append((f"{key[0]}: {statement}", told[0], told[1]))
        found.append(Difference("claims", names, rows if len(rows) > 1 else []))
    if a.run is None and (alone := sorted(a.curves.keys() ^ b.curves.keys())):
        there = [["trained" if run in side.curves else ABSENT for side in (a, b)] for run in alone]
        pairs = zip(alone, there, strict=True)
        found.append(Difference("runs", names, [(run, old, new) for run, (old, new) in pairs]))
    return found


def _reproduced(side: Side) -> str:
    number = sum(row["outcome"] == "reproduced" for row in side.claims.values())
    return f"{number} of {len(side.claims)}"


def _texts(old: Any, new: Any) -> tuple[str, str]:
    """Both values with six digits, or with all where these are the same."""

    def text(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    short = text(old), text(new)
    return short if short[0] != short[1] else (repr(old), repr(new))


def as_tables(found: Sequence[Difference]) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for part in found:
        if part.rows:
            title = f"{part.title} that differ"
            table = Table(title=title, title_justify="left", box=None)
            for name in ("", *part.names):
                table.add_column(name, overflow="fold")  # a key cut short is no key
            for row in part.rows:
                table.add_row(*map(escape, row))
            parts += [table, ""]
        else:
            parts.append(f"[bold]{part.title}[/]: none differ\n")
    return Group(*parts)


def as_markdown(found: Sequence[Difference]) -> str:
    """For a comment on a pull request."""
    lines = []
    for part in reversed(found):  # claims first
        if part.rows:
            rows = [("", *part.names), ("---",) * 3, *part.rows]
            cells = [[html.escape(cell).replace("|", "&#124;") for cell in row] for row in rows]
            table = ["| " + " | ".join(row) + " |" for row in cells]
            lines += [f"### {part.title} that differ", "", *table, ""]
        else:
            lines += [f"### {part.title}: none differ", ""]
    return "\n".join(lines)


def figures(a: Side, b: Side) -> Iterator[go.Figure]:
    """Training curves of the runs in which `a` and `b` differ, one above the other."""
    if a.run is not None and b.run is not None:
        pairs = [(f"{a.run} and {b.run}", a.curves[a.run], b.curves[b.run])]
    else:
        pairs = [(run, a.curves[run], b.curves[run]) for run in a.curves if run in b.curves]
    for title, old, new in pairs:
        if old.equals(new):
            continue
        table = pd.concat([old.assign(of=a.name), new.assign(of=b.name)])
        shown = [name for name in table if name not in ("variant", "seed", "step", "lr", "of")]
        long = table.melt(["of", "variant", "seed", "step"], shown, "quantity").dropna()
        figure = px.line(
            long.assign(model=long["variant"] + " " + long["seed"].astype(str)),
            **{"x": "step", "y": "value", "color": "of", "line_group": "model"},
            **{"facet_col": "quantity", "facet_col_wrap": 2, "facet_col_spacing": 0.08},
            **{"color_discrete_sequence": COLORS, "labels": {"of": "", "value": ""}},
            **{"title": title, "height": 160 + 280 * -(-len(shown) // 2), "template": TEMPLATE},
        )
        figure.update_yaxes(matches=None, showticklabels=True)
        yield bare_facets(figure)


def write_page(a: Side, b: Side, out: Path) -> int:
    """Write the figures as one page that needs nothing else; how many there are."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0)
        for number, figure in enumerate(figures(a, b))
    ]
    heading = f"{a.name} and {b.name}"
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(heading)}</title>'
    if parts:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join([head, *parts]), encoding="utf-8")
    return len(parts)
