"""One experiment's part of the page: its figures, claims, tables and settings as HTML."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from toycircuits.claims.card import Card
from toycircuits.claims.verdict import OUTCOMES
from toycircuits.core.paths import ARTIFACTS

PROVENANCE = "<!-- provenance -->"  # where the page puts it: it is known only in the end
N_ROWS = 60  # of a table on the page; the file has all
WIDE = 900  # pixels from which a figure is scrolled on a narrow screen rather than squeezed
FACETS = 520  # the same, where plots stand side by side
MARKS = {"reproduced": "✓", "not reproduced": "✗", "not comparable": "–"}  # noqa: RUF001


def folder(experiment: str) -> Path:
    """Where the part about `experiment` stands: `section.html`, and `summary.json`."""
    return ARTIFACTS / "sections" / experiment


def environment() -> Environment:
    """Templates in which whatever is inserted is text, never markup but for `with_code`'s."""
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
    """Text in which what stands between backticks is code.

    >>> with_code("`a < b` & c")
    Markup('<code>a &lt; b</code> &amp; c')
    """
    # Escaping comes first, and makes no backticks: the only markup there will be is this.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def script_json(value: Any) -> str:
    """`value` as JSON that can stand in a script element, whatever strings are in it."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True)
class Figure:
    """A figure as the page shows it.

    Attributes:
        order: of drawing.
        name: of its files.
        title: its heading, in words.
        height: pixels.
        min_width: pixels below which it is scrolled.
        content: JSON of data and layout, without title, size and template, which all share.
    """

    order: int
    name: str
    title: str
    height: int
    min_width: int
    content: str


def read_figure(path: Path) -> Figure:
    """The figure whose Plotly JSON is at `path`."""
    figure = json.loads(path.read_text())
    layout = figure["layout"]
    layout.pop("template", None)
    title = layout.pop("title", {}).get("text", path.stem)
    order = layout.pop("meta", {}).get("order", 0)
    width, height = layout.pop("width", 0), int(layout.pop("height", 440))
    beside = layout.get("xaxis2", {}).get("domain", [0])[0] > 0
    min_width = int(0.75 * width) if width >= WIDE else FACETS if beside else 0
    if "margin" in layout:
        layout["margin"] = {**layout["margin"], "t": max(24, layout["margin"].get("t", 56) - 30)}
    content = script_json({"data": figure["data"], "layout": layout})
    plain = title.replace("<br>", " ").replace("<i>", "").replace("</i>", "")
    return Figure(order, path.stem, plain, height, min_width, content)


def read_figures(folder: Path) -> list[Figure]:
    """The figures of `folder`, as they were drawn one after the other."""
    found = [read_figure(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda figure: figure.order)


@dataclass(frozen=True)
class Table:
    """A table as the page shows it, from the file at `path` of the project."""

    path: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int


def read_shown_table(path: Path) -> Table:
    """The table at `path`; of a long one, its first rows."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = [[_shorter(cell) for cell in row] for row in table.head(N_ROWS).to_numpy().tolist()]
    return Table(path.as_posix(), list(table.columns), rows, len(table))


def _shorter(cell: str) -> str:
    """A number with five digits at most; other text as it is."""
    try:
        number = float(cell)
    except ValueError:
        return cell
    return cell if cell.lstrip("-").isdigit() else f"{number:.5g}"


def read_claims(path: Path) -> pd.DataFrame:
    """What became of the claims, every cell as the text that stands at `path`: 49 is not 49.0."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def counts(claims: pd.DataFrame) -> dict[str, int]:
    """How many claims have each outcome."""
    found = claims["outcome"].value_counts()
    return {outcome: int(found.get(outcome, 0)) for outcome in OUTCOMES}


def settings_of(params: Mapping[str, Any], experiment: str) -> dict[str, str]:
    """The settings of `experiment` at the chosen scale, and what each of its runs changes."""
    runs = {k: v for k, v in params["runs"].items() if v["experiment"] == experiment}
    own = {
        name: {k: v for k, v in run.items() if k not in ("experiment", "slice", "final")}
        for name, run in runs.items()
    }
    texts = {"all runs": params[params["scale"]][experiment]} | {k: v for k, v in own.items() if v}
    return {name: json.dumps(values, indent=2) for name, values in texts.items()}


def section(
    experiment: str,
    card: Card,
    claims: pd.DataFrame,
    figures: Sequence[Figure],
    tables: Sequence[Table],
    settings: Mapping[str, str],
) -> str:
    """The HTML of one experiment, with the place marked that is for its provenance.

    Args:
        claims: as `read_claims` has them.
    """
    rows = [
        # A mean has no models that pass, and what is not comparable may have none at all.
        {**row, "models": int(row["models"] or 0), "passing": int(row["passing"] or 0)}
        | {"has_passing": row["passing"] != ""}
        for row in claims.to_dict("records")
    ]
    return (
        environment()
        .get_template("section.html")
        .render(
            experiment=experiment,
            card=card,
            claims=rows,
            counts=counts(claims),
            marks=MARKS,
            figures=figures,
            tables=tables,
            settings=settings,
            provenance_mark=PROVENANCE,
        )
    )
