"""Figures as papers print them: laid out for the width they will have, with text of 8 points.

Scaling a figure of 760 pixels to a column would leave its text at 4 points. So it is laid out anew,
over fewer pixels: as many as make its text of 14 pixels 8 points high in print.
"""

import math
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType

from toycircuits.core import paths
from toycircuits.core.config import InputError
from toycircuits.core.pictures import draw_pictures, is_drawn
from toycircuits.core.plotting import HEIGHT, LEGEND_BELOW, TEMPLATE, WIDTH
from toycircuits.core.render import draw

FORMATS = ("pdf", "svg", "png")
WIDTHS = {"column": 3.25, "page": 6.75}  # inches, of a paper in two columns
NARROWEST, WIDEST = 1.5, 40.0  # inches
FONT, POINTS, DOTS = 14, 8, 300  # text in pixels and in points; dots per inch of a PNG
PIXELS = 72 * FONT / POINTS  # of the layout, per inch
TITLE = 44  # pixels that a title takes
LINE = 22  # pixels of a line of text
BESIDE = 600  # pixels of width from which a legend may stand beside the plot
MARGINS, NARROW_PANEL = 100, 110  # pixels beside the panels; of the least readable panel
FLATTEST = 0.65  # least share of its own height that a narrowed plot keeps


def inches(width: str) -> float:
    """The width that `column`, `page` or a number of inches stands for.

    Raises:
        InputError: it is none of these.
    """
    try:
        value = WIDTHS[width] if width in WIDTHS else float(width)
    except ValueError:
        value = math.nan
    if not NARROWEST <= value <= WIDEST:
        allowed = f"{', '.join(WIDTHS)}, or {NARROWEST:g} to {WIDEST:g} inches"
        raise InputError(f"--width: found {width!r}; allowed: {allowed}")
    return value


def find(names: Sequence[str], params: Mapping[str, Any]) -> dict[str, go.Figure]:
    """The figures `names`, EXPERIMENT/NAME or EXPERIMENT for all of it; all figures for none.

    They are drawn anew, from the tables in reports/.

    Raises:
        InputError: a figure or an experiment is not there, or has no tables yet.
    """
    experiments = params["experiments"]
    found: dict[str, go.Figure] = {}
    drawn: dict[str, dict[str, go.Figure]] = {}
    for name in names or experiments:
        experiment, _, figure = name.partition("/")
        if experiment not in experiments:
            raise InputError(f"{name}: found {experiment!r}; allowed: {', '.join(experiments)}")
        if not (folder := paths.tables(experiment)).is_dir():
            raise InputError(f"{folder}: no tables yet; `toycircuits repro` makes them")
        if experiment not in drawn:
            drawn[experiment] = draw(params, experiment, experiments[experiment]["slice"])[1]
        own = drawn[experiment]
        if figure and figure not in own:
            raise InputError(f"{name}: no such figure; {experiment} has {', '.join(own)}")
        found |= {f"{experiment}/{one}": own[one] for one in ([figure] if figure else own)}
    return found


def fit(figure: go.Figure, width: float, title: bool) -> go.Figure:
    """The figure laid out anew for `width` inches, with or without its title."""
    figure = go.Figure(figure)
    own, pixels = figure.layout, round(width * PIXELS)
    margin = {**TEMPLATE.layout.margin.to_plotly_json(), **own.margin.to_plotly_json()}
    plot = (own.height or HEIGHT) - margin["t"] - margin["b"]
    narrowed = pixels / (own.width or WIDTH)
    top = margin["t"]
    if not title:
        headings = [note.text.count("<br>") + 1 for note in own.annotations if _is_heading(note)]
        top = max(LINE * max(headings, default=0) + LINE / 2, top - TITLE)
        figure.update_layout(title=None, margin_t=top)
    below = 0
    if own.legend.orientation == "h" or pixels < BESIDE:
        below = LINE * _legend_lines(figure, pixels)
        figure.update_layout(legend=LEGEND_BELOW)
    figure.update_xaxes(title_font_size=FONT).update_yaxes(title_font_size=FONT)
    height = plot * max(narrowed, FLATTEST) + top + margin["b"] + below
    return figure.update_layout(width=pixels, height=round(height))


def crowded(figure: go.Figure) -> bool:
    """Whether the panels of a figure that was fitted are too narrow for their texts."""
    axes = [axis for axis in figure.select_xaxes() if axis.domain]
    widths = [axis.domain[1] - axis.domain[0] for axis in axes]
    return min(widths, default=1.0) * (figure.layout.width - MARGINS) < NARROW_PANEL


def write(
    named: Mapping[str, go.Figure], file_format: str, width: float, folder: Path, title: bool
) -> list[Path]:
    """Draw figures in one start of Chrome to FOLDER/EXPERIMENT/NAME.FORMAT; the files written.

    Args:
        named: EXPERIMENT/NAME -> figure.

    Raises:
        InputError: there is no Chrome, it fails, or the folder cannot be written to.
    """
    scale = {"png": DOTS / PIXELS}.get(file_format, 96 / PIXELS)  # 96 of Chrome's pixels an inch
    figures = {name: fit(figure, width, title) for name, figure in named.items()}
    targets = [folder / f"{name}.{file_format}" for name in figures]
    for name, figure in figures.items():
        if crowded(figure):
            print(f"note: {name} has panels that are narrow at {width:g} inches", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            drawn = [Path(temporary) / f"{i}.{file_format}" for i in range(len(targets))]
            jobs = [
                {
                    "fig": figure,
                    "path": path,
                    "opts": {
                        "width": figure.layout.width,
                        "height": figure.layout.height,
                        "scale": scale,
                    },
                }
                for figure, path in zip(figures.values(), drawn, strict=True)
            ]
            draw_pictures(jobs)
            if empty := [t.name for p, t in zip(drawn, targets, strict=True) if not is_drawn(p)]:
                raise RuntimeError(f"the browser left no picture of {', '.join(empty)}")
            for path, target in zip(drawn, targets, strict=True):
                if file_format == "svg":
                    in_points(path)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
    except Exception as error:  # Kaleido's and Chrome's failures share no narrower class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = "pictures are drawn by Chrome or Chromium"
        raise InputError(f"{folder}: not written: {reason[0]} ({hint})") from error
    return targets


def in_points(svg: Path) -> None:
    """Give the size of an SVG of Kaleido's in points: programs differ on what a pixel is."""
    text = svg.read_text()
    head, tag, rest = text.partition(">")
    points = re.sub(
        r'\b(width|height)="([\d.]+)"',
        lambda match: f'{match[1]}="{float(match[2]) * 72 / 96:.2f}pt"',
        head,
    )
    svg.write_text(points + tag + rest)


def _is_heading(note: go.layout.Annotation) -> bool:
    """Whether an annotation is the heading of a panel of the upper row."""
    return note.yref == "paper" and note.y is not None and note.y > 0.98 and not note.textangle


def _has_legend(trace: BaseTraceType) -> bool:
    return "showlegend" in trace and trace.showlegend is not False and bool(trace.name)


def _legend_lines(figure: go.Figure, pixels: float) -> int:
    """Lines that the legend takes, about, where it stands below the plot, in even columns."""
    names = [re.sub("<.*?>", "", trace.name) for trace in figure.select_traces(_has_legend)]
    if len(names) < 2:
        return 0
    columns = pixels // (55 + 0.6 * FONT * max(map(len, names)))
    return math.ceil(len(names) / max(1, columns))
