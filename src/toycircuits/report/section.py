"""One experiment's part of the page as HTML: its figures, claims, tables and settings."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import ConfigDict, Field

from toycircuits.core.config import InputError, Settings, find_run, read_text
from toycircuits.core.json_text import read_json
from toycircuits.core.messages import short
from toycircuits.core.paths import remedy
from toycircuits.core.tables import csv_text

# The stage `report` replaces this text, because the provenance is not known before all stages ran.
PROVENANCE = "<!-- provenance -->"
N_ROWS = 60  # that the page shows of a table; the file holds all rows
WIDE = 900  # pixels: a wider figure keeps most of its width on a narrow screen, and is scrolled
LEFT_OUT = ("template", "title", "meta", "width", "height")  # of the layout: the page has its own
FACETS = 520  # pixels: the smallest width of a figure with plots side by side
MARKS = {"reproduced": "✓", "not reproduced": "✗", "not comparable": "–"}  # noqa: RUF001


def environment() -> Environment:
    """The templates. They insert every value as text, never as markup.

    The one exception is the filter `with_code`, which adds `<code>` elements.
    """
    templates = Environment(
        loader=PackageLoader("toycircuits.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["with_code"] = with_code
    return templates


def with_code(text: str) -> Markup:
    """`text` as HTML, with everything between two backticks as code.

    >>> with_code("`a < b` & c")
    Markup('<code>a &lt; b</code> &amp; c')
    """
    # Escaping comes first and adds no backticks, so that the text cannot add other markup.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def script_json(value: Any) -> str:
    """`value` as JSON that is safe inside a script element, whatever text it contains."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True)
class Figure:
    """A figure as the page shows it.

    Attributes:
        order: position among the figures of its experiment.
        name: name of its files.
        title: its heading, in words.
        height: in pixels.
        min_width: in pixels; on a narrower screen the figure is scrolled.
        content: JSON of data and layout, without the title, the size and the shared template.
    """

    order: int
    name: str
    title: str
    height: int
    min_width: int
    content: str


class _Part(Settings):
    """A part of a figure's layout of which only some keys matter here."""

    model_config = ConfigDict(extra="ignore")


class _Title(_Part):
    text: str


class _Meta(_Part):
    order: int


class _Axis(_Part):
    domain: tuple[float, float] = (0, 1)


class _Margin(_Part):
    t: int | float = 56


class _Layout(_Part):
    """What this module reads of a figure's layout; sizes are in pixels."""

    title: _Title | None = None
    meta: _Meta = _Meta(order=0)
    width: int | float = Field(default=0, ge=0, le=1e5)
    height: int | float = Field(default=440, ge=1, le=1e5)
    xaxis2: _Axis = _Axis()
    margin: _Margin | None = None


def read_figure(path: Path) -> Figure:
    """The figure whose Plotly JSON is at `path`.

    Raises:
        InputError: the file holds something else.
    """
    figure = read_json(path, remedy(path))
    data, layout = _data_and_layout(figure, path)
    known = _Layout.parse(
        {k: v for k, v in layout.items() if k in _Layout.model_fields}, f"{path}: layout"
    )
    side_by_side = known.xaxis2.domain[0] > 0
    min_width = int(0.75 * known.width) if known.width >= WIDE else FACETS if side_by_side else 0
    shown = {key: value for key, value in layout.items() if key not in LEFT_OUT}
    if known.margin:
        shown["margin"] = {**layout["margin"], "t": max(24, known.margin.t - 30)}
    try:
        content = script_json({"data": data, "layout": shown})
    except ValueError:  # a number such as 1e999
        raise InputError(f"{path}: found an infinite number{remedy(path)}") from None
    title = known.title.text if known.title else path.stem
    plain = title.replace("<br>", " ").replace("<i>", "").replace("</i>", "")
    return Figure(known.meta.order, path.stem, plain, int(known.height), min_width, content)


def _data_and_layout(figure: Any, path: Path) -> tuple[list[Any], dict[str, Any]]:
    """The two parts of the figure from the file at `path`.

    Raises:
        InputError: it has others.
    """
    parts = (figure.get("data"), figure.get("layout")) if isinstance(figure, dict) else ()
    match parts:
        case list() as traces, dict() as layout if all(isinstance(t, dict) for t in traces):
            return traces, layout
    raise InputError(
        f"{path}: found {short(figure)}; allowed: a Plotly figure, with the objects `layout` and a "
        f"list of objects, `data`{remedy(path)}"
    )


def read_figures(folder: Path) -> list[Figure]:
    """The figures in `folder`, in the order in which they were drawn.

    Raises:
        InputError: there is no such folder, or as `read_figure`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder{remedy(folder)}")
    figures = [read_figure(path) for path in sorted(folder.glob("*.json"))]
    return sorted(figures, key=lambda figure: figure.order)


@dataclass(frozen=True)
class Table:
    """A table as the page shows it.

    Attributes:
        path: its file in the project.
        columns: their names.
        rows: the first rows, as text.
        total: number of rows in the file.
    """

    path: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int


def read_shown_table(path: Path) -> Table:
    """The table at `path`, with at most `N_ROWS` of its rows.

    Raises:
        InputError: as `csv_text`.
    """
    table = pd.read_csv(io.StringIO(csv_text(path)), dtype=str, keep_default_na=False)
    rows = [[_rounded(cell) for cell in row] for row in table.head(N_ROWS).to_numpy().tolist()]
    return Table(path.as_posix(), list(table.columns), rows, len(table))


def _rounded(cell: str) -> str:
    """A number with at most five digits. Integers and other text stay as they are."""
    try:
        number = float(cell)
    except ValueError:
        return cell
    return cell if cell.lstrip("-").isdigit() else f"{number:.5g}"


def settings_of(params: Mapping[str, Any], experiment: str) -> dict[str, str]:
    """The settings of `experiment` at the chosen scale, and the changes that each run makes."""
    texts: dict[str, Any] = {"all runs": params[params["scale"]][experiment]}
    sections = {"model", "train", "scales", "variants"}
    for name, run in params["runs"].items():
        if run["experiment"] == experiment:
            entry = find_run(params, name).entry
            texts[name] = entry.model_dump(include=sections, exclude_defaults=True)
    return {name: json.dumps(values, indent=2) for name, values in texts.items() if values}


class _Counts(Settings):
    """How many claims have each outcome."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", " "))
    reproduced: int = Field(ge=0)
    not_reproduced: int = Field(ge=0)
    not_comparable: int = Field(ge=0)


class _Summary(Settings):
    title: str
    counts: _Counts


@dataclass(frozen=True)
class Part:
    """What the stage `section` wrote about one experiment; see `Section`."""

    html: str
    title: str
    counts: Mapping[str, int]


def read_part(folder: Path) -> Part:
    """The part of the page in `folder`.

    Raises:
        InputError: a file is absent, or holds something else.
    """
    path = folder / "summary.json"
    summary = read_json(path, remedy(path))
    _Summary.parse(summary, str(path))
    html = read_text(folder / "section.html", remedy(folder))
    if html.count(PROVENANCE) != 1:
        text = f"found {html.count(PROVENANCE)} times {PROVENANCE}; allowed: once"
        raise InputError(f"{folder / 'section.html'}: {text}{remedy(folder)}")
    return Part(html, summary["title"], summary["counts"])


@dataclass(frozen=True)
class Section:
    """What the page shows about one experiment.

    Attributes:
        experiment: its name.
        title: heading.
        question: one sentence.
        method: a few lines.
        counts: outcome -> number of claims.
        verdicts: the table of verdicts, every cell as text.
        figures: in the order in which the page shows them.
        tables: likewise.
        settings: name of a run, or "all runs" -> its settings as text.
    """

    experiment: str
    title: str
    question: str
    method: Sequence[str]
    counts: Mapping[str, int]
    verdicts: pd.DataFrame
    figures: Sequence[Figure]
    tables: Sequence[Table]
    settings: Mapping[str, str]


def section_html(section: Section) -> str:
    """The HTML of one experiment. `PROVENANCE` marks the place of its provenance."""
    claims = [
        # Claims about a mean count no passing models, and claims without a row have no models.
        {**row, "models": int(row["models"] or 0), "passing": int(row["passing"] or 0)}
        | {"has_passing": row["passing"] != ""}
        for row in section.verdicts.to_dict("records")
    ]
    template = environment().get_template("section.html")
    return template.render(section=section, claims=claims, marks=MARKS, provenance_mark=PROVENANCE)
