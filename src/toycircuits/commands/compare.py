"""`toycircuits compare`: two revisions, `dvc exp` experiments or runs side by side."""

import html
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from pydantic import ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table

from toycircuits.claims.verdict import read_metrics, read_verdicts
from toycircuits.commands.show import plain, settings_of
from toycircuits.commands.structure import read_project
from toycircuits.core import paths, report_paths
from toycircuits.core.config import InputError, Settings, find_run, read_yaml
from toycircuits.core.messages import escaped
from toycircuits.core.plotting import COLORS, TEMPLATE, bare_facets
from toycircuits.core.tables import read_table
from toycircuits.revisions import Files

WORKSPACE = "workspace"
ABSENT = "-"


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared.

    Attributes:
        name: as it was given to the command.
        params: key path -> value.
        metrics: name -> value.
        claims: experiment and id of each claim -> its row in the table of verdicts.
        curves: run -> its training log.
        run: name of the run, if this is a run and not a revision.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    claims: Mapping[tuple[str, str], Mapping[str, str]]
    curves: Mapping[str, pd.DataFrame]
    run: str | None = None


def sides(root: Path, names: tuple[str, str]) -> tuple[Side, Side]:
    """The two things that `names` stand for.

    Args:
        root: the project folder.
        names: two runs of params.yaml; or two of git revisions, `dvc exp` experiments and
            "workspace", which means the files as they are.

    Raises:
        InputError: there is no such run or revision, or one name is a run and the other is not.
    """
    params = read_project(root / "params.yaml")
    is_run = [name in params["runs"] for name in names]
    if all(is_run):
        return _run(root, params, names[0]), _run(root, params, names[1])
    if any(is_run) and WORKSPACE in names:
        raise InputError(
            f"compare: found {' and '.join(names)}; allowed: two runs, or two revisions"
        )
    return _revision(root, names[0]), _revision(root, names[1])


def _revision(root: Path, name: str) -> Side:
    with tempfile.TemporaryDirectory() as scratch:
        files = Files(root, None if name == WORKSPACE else name, Path(scratch))
        params = _params_of(files.get(Path("params.yaml")), name)
        metrics: dict[str, float] = {}
        claims: dict[tuple[str, str], dict[str, str]] = {}
        curves: dict[str, pd.DataFrame] = {}
        for experiment in params["experiments"]:
            if file := files.get(report_paths.metrics_file(experiment)):
                values = _flat(read_metrics(file))
                metrics |= {f"{experiment}.{key}": value for key, value in values.items()}
            if file := files.get(report_paths.claims_table(experiment)):
                verdicts = read_verdicts(file).to_dict("records")
                claims |= {(experiment, row["id"]): _as_texts(row) for row in verdicts}
        for run, entry in params["runs"].items():
            if file := files.get(paths.training_table(entry["experiment"], run)):
                curves[run] = read_table(file)
        return Side(name, _flat(params), metrics, claims, curves)


class _Run(Settings):
    """What is needed of an entry under `runs:`, whatever else an earlier revision has there."""

    model_config = ConfigDict(extra="allow")
    experiment: str


class _Params(Settings):
    """What is needed of params.yaml as of any revision."""

    model_config = ConfigDict(extra="allow")
    experiments: dict[str, Any]
    runs: dict[str, _Run]


def _params_of(file: Path | None, revision: str) -> dict[str, Any]:
    """The params in `file`, which is params.yaml as of `revision`.

    Earlier revisions may have aliases, and other scales, sections and settings than this one.
    """
    if file is None:
        raise InputError(f"compare: {revision}: this revision has no params.yaml")
    try:
        params: dict[str, Any] = read_yaml(file)
        _Params.parse(params, str(file))
    except InputError as error:
        reason = str(error).removeprefix(str(file)).lstrip(".: ")
        raise InputError(f"compare: params.yaml of {revision}: {reason}") from None
    return params


def _as_texts(row: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): str(text) for name, text in row.items()}


def _run(root: Path, params: Mapping[str, Any], name: str) -> Side:
    run = find_run(params, name)
    log = root / paths.training_table(run.entry.experiment, name)
    if not log.exists():
        raise InputError(
            f"compare: {name}: no results yet; `toycircuits repro measure@{name}` makes them"
        )
    training = read_table(log)
    last = training.groupby(["variant", "seed"]).tail(1).drop(columns=["variant", "seed", "step"])
    metrics = {f"training.{key}": float(value) for key, value in last.mean().items()}
    if (measured := log.with_name("measure") / "metrics.csv").exists():
        means = read_table(measured).groupby("metric", sort=False)["value"].mean()
        metrics |= {str(key): float(value) for key, value in means.items()}
    settings: dict[str, Any] = settings_of(run)
    variants = {f"variants.{key}": value for key, value in run.entry.variants.items()}
    return Side(name, _flat(settings | variants), metrics, {}, {name: training}, name)


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
    """All differences of one kind between two sides.

    Attributes:
        title: the kind, for example "params".
        names: of both sides.
        rows: what differs, and its value on either side; "-" where a side does not have it.
    """

    title: str
    names: tuple[str, str]
    rows: list[tuple[str, str, str]]


def differences(a: Side, b: Side) -> list[Difference]:
    """Params, metrics, claims and runs in which `a` and `b` differ.

    Claims are left out if no side has any. Metrics of a run are means over its models.
    """
    names = a.name, b.name
    metrics = "metrics" if a.run is None else "metrics (means over models)"
    parts = [
        Difference("params", names, _differing(a.params, b.params)),
        Difference(metrics, names, _differing(a.metrics, b.metrics)),
    ]
    if a.claims or b.claims:
        rows = _differing_claims(a, b)
        rows = [("reproduced", _reproduced(a), _reproduced(b)), *rows] if rows else []
        parts.append(Difference("claims", names, rows))
    if a.run is None and (of_one_side := sorted(a.curves.keys() ^ b.curves.keys())):
        rows = [(run, _trained(a, run), _trained(b, run)) for run in of_one_side]
        parts.append(Difference("runs", names, rows))
    return parts


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    pairs = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in {**old, **new}}
    return [(key, *_texts(*pair)) for key, pair in pairs.items() if repr(pair[0]) != repr(pair[1])]


def _differing_claims(a: Side, b: Side) -> list[tuple[str, str, str]]:
    """Claims with different outcomes."""
    rows = []
    for key in {**a.claims, **b.claims}:
        verdicts = [side.claims.get(key) for side in (a, b)]
        if len({verdict["outcome"] if verdict else ABSENT for verdict in verdicts}) > 1:
            old, new = (f"{v['outcome']} ({v['measured']})" if v else ABSENT for v in verdicts)
            statement = next(v["statement"] for v in reversed(verdicts) if v)
            rows.append((f"{key[0]}: {statement}", old, new))
    return rows


def _trained(side: Side, run: str) -> str:
    return "trained" if run in side.curves else ABSENT


def _reproduced(side: Side) -> str:
    number = sum(row["outcome"] == "reproduced" for row in side.claims.values())
    return f"{number} of {len(side.claims)}"


def _texts(old: Any, new: Any) -> tuple[str, str]:
    """Both values with six digits, or with all digits if they differ only in later ones."""

    def text(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    short = text(old), text(new)
    return short if short[0] != short[1] else (repr(old), repr(new))


def as_tables(parts: Sequence[Difference]) -> RenderableType:
    """The differences for a terminal."""
    shown: list[RenderableType] = []
    for part in parts:
        if part.rows:
            title = f"{part.title} that differ"
            table = Table(title=title, title_justify="left", box=None)
            for name in ("", *part.names):
                table.add_column(plain(name), overflow="fold")  # never cut a key short
            for row in part.rows:
                table.add_row(*map(plain, row))
            shown += [table, ""]
        else:
            shown.append(f"[bold]{part.title}[/]: none differ\n")
    return Group(*shown)


def as_markdown(parts: Sequence[Difference]) -> str:
    """The differences for a comment on a pull request, claims before params."""
    lines = []
    for part in reversed(parts):
        if part.rows:
            rows = [("", *part.names), ("---",) * 3, *part.rows]
            cells = [[_markdown(cell) for cell in row] for row in rows]
            table = ["| " + " | ".join(row) + " |" for row in cells]
            lines += [f"### {part.title} that differ", "", *table, ""]
        else:
            lines += [f"### {part.title}: none differ", ""]
    return "\n".join(lines)


def _markdown(cell: str) -> str:
    """`cell` as text for Markdown: no HTML, no link, no mention of a person, one line."""
    text = html.escape(escaped(" ".join(cell.split())))
    return text.replace("|", "&#124;").replace("](", "]&#40;").replace("@", "&#64;")


def figures(a: Side, b: Side) -> Iterator[go.Figure]:
    """For each run whose training logs differ, a figure with the curves of both sides."""
    if a.run is not None and b.run is not None:
        pairs = [(f"{a.run} and {b.run}", a.curves[a.run], b.curves[b.run])]
    else:
        pairs = [(run, a.curves[run], b.curves[run]) for run in a.curves if run in b.curves]
    for title, old, new in pairs:
        if old.equals(new):
            continue
        # Plotly takes HTML in names for links and styles.
        names = html.escape(a.name), html.escape(b.name)
        table = pd.concat([old.assign(of=names[0]), new.assign(of=names[1])])
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
    """Write the figures to the page `out`, which works offline, and return their number.

    Nothing is written if there are no figures.
    """
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
