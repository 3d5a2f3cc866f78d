"""`toycircuits figures`: figures for print, laid out for their width, with text of 8 points.

A figure of 760 pixels that is scaled down to a column has text of 4 points. So we lay each figure
out anew, with as many pixels as make its text of 14 pixels 8 points high in print.
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
FONT, POINTS, DOTS = 14, 8, 300  # height of text in pixels and in points; dots per inch of a PNG
PIXELS = 72 * FONT / POINTS  # of the layout, per inch
TITLE = 44  # height of a title, in pixels
LINE = 22  # height of a line of text, in pixels
BESIDE = 600  # in a narrower figure (pixels), the legend stands below the plot
MARGINS, NARROW_PANEL = 100, 110  # width beside the panels, and of the narrowest readable one
FLATTEST = 0.65  # a narrowed plot keeps at least this share of its height


def print_figures(
    names: Sequence[str],
    params: Mapping[str, Any],
    file_format: str,
    width: str,
    folder: Path,
    title: bool,
) -> list[Path]:
    """Draw the figures that `names` mean into `folder`; the files written.

    Args:
        names: as `select` reads them.
        params: all of params.yaml.
        file_format: one of `FORMATS`.
        width: as `inches` reads it.
        folder: where to write.
        title: whether to keep the titles.

    Raises:
        InputError: an argument is wrong.
        OSError: Chrome does not draw, or the folder cannot be written to.
    """
    if file_format not in FORMATS:
        raise InputError(f"--format: found {file_format!r}; allowed: {', '.join(FORMATS)}")
    width_inches = inches(width)
    return write(select(names, params), file_format, width_inches, folder, title)


def inches(width: str) -> float:
    """The width in inches; `width` is "column", "page" or a number of inches.

    Raises:
        InputError: it is something else, or too narrow or too wide.
    """
    try:
        value = WIDTHS[width] if width in WIDTHS else float(width)
    except ValueError:
        value = math.nan
    if not NARROWEST <= value <= WIDEST:
        allowed = f"{', '.join(WIDTHS)}, or {NARROWEST:g} to {WIDEST:g} inches"
        raise InputError(f"--width: found {width!r}; allowed: {allowed}")
    return value


def select(names: Sequence[str], params: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw the figures that `names` mean, from the tables in reports/.

    Args:
        names: EXPERIMENT/NAME for one figure, or EXPERIMENT for all its figures. An empty list
            means all figures of all experiments.
        params: all of params.yaml.

    Returns:
        EXPERIMENT/NAME -> figure.

    Raises:
        InputError: there is no such figure or experiment, or the experiment has no tables yet.
    """
    experiments = params["experiments"]
    drawn: dict[str, dict[str, go.Figure]] = {}
    selected: dict[str, go.Figure] = {}
    for name in names or experiments:
        experiment, _, figure = name.partition("/")
        if experiment not in experiments:
            raise InputError(f"{name}: found {experiment!r}; allowed: {', '.join(experiments)}")
        if not (folder := paths.tables(experiment)).is_dir():
            raise InputError(f"{folder}: no tables yet; `toycircuits repro` makes them")
        if experiment not in drawn:
            drawn[experiment] = draw(params, experiment, experiments[experiment]["slice"])[1]
        figures = drawn[experiment]
        if figure and figure not in figures:
            raise InputError(f"{name}: no such figure; {experiment} has {', '.join(figures)}")
        chosen = [figure] if figure else figures
        selected |= {f"{experiment}/{key}": figures[key] for key in chosen}
    return selected


def fit(figure: go.Figure, width: float, title: bool) -> go.Figure:
    """A copy of the figure laid out for `width` inches, with or without its title."""
    figure = go.Figure(figure)
    layout, pixels = figure.layout, round(width * PIXELS)
    margin = {**TEMPLATE.layout.margin.to_plotly_json(), **layout.margin.to_plotly_json()}
    plot = (layout.height or HEIGHT) - margin["t"] - margin["b"]
    narrowed = pixels / (layout.width or WIDTH)
    top = margin["t"]
    if not title:
        headings = [note.text.count("<br>") + 1 for note in layout.annotations if _is_heading(note)]
        top = max(LINE * max(headings, default=0) + LINE / 2, top - TITLE)
        figure.update_layout(title=None, margin_t=top)
    below = 0
    if layout.legend.orientation == "h" or pixels < BESIDE:
        below = LINE * _legend_lines(figure, pixels)
        figure.update_layout(legend=LEGEND_BELOW)
    figure.update_xaxes(title_font_size=FONT).update_yaxes(title_font_size=FONT)
    height = plot * max(narrowed, FLATTEST) + top + margin["b"] + below
    return figure.update_layout(width=pixels, height=round(height))


def crowded(figure: go.Figure) -> bool:
    """Whether the panels of a figure that `fit` returned are too narrow for their texts."""
    axes = [axis for axis in figure.select_xaxes() if axis.domain]
    widths = [axis.domain[1] - axis.domain[0] for axis in axes]
    return min(widths, default=1.0) * (figure.layout.width - MARGINS) < NARROW_PANEL


def write(
    named: Mapping[str, go.Figure], file_format: str, width: float, folder: Path, title: bool
) -> list[Path]:
    """Draw figures in one start of Chrome to FOLDER/EXPERIMENT/NAME.FORMAT; the files written.

    Args:
        named: EXPERIMENT/NAME -> figure.
        file_format: one of `FORMATS`.
        width: in inches.
        folder: where to write.
        title: whether to keep the titles.

    Raises:
        OSError: there is no Chrome, it fails, or the folder cannot be written to.
    """
    figures = {name: fit(figure, width, title) for name, figure in named.items()}
    for name, figure in figures.items():
        if crowded(figure):
            text = f"note: {name} has narrow panels at {width:g} inches; try a larger --width"
            print(text, file=sys.stderr)
    targets = [folder / f"{name}.{file_format}" for name in figures]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            pictures = [Path(temporary) / f"{i}.{file_format}" for i in range(len(targets))]
            draw_pictures(_jobs([*figures.values()], pictures, file_format))
            pairs = [*zip(pictures, targets, strict=True)]
            if empty := [target.name for picture, target in pairs if not is_drawn(picture)]:
                raise RuntimeError(f"the browser left no picture of {', '.join(empty)}")
            for picture, target in pairs:
                if file_format == "svg":
                    in_points(picture)
                target.parent.mkdir(exist_ok=True)
                picture.replace(target)
    except Exception as error:  # Kaleido's and Chrome's failures share no narrower class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = "Chrome or Chromium draws the pictures; `toycircuits doctor` looks for it"
        raise OSError(f"{folder}: not written: {reason[0]} ({hint})") from error
    return targets


def _jobs(
    figures: Sequence[go.Figure], pictures: Sequence[Path], file_format: str
) -> list[dict[str, Any]]:
    """What `draw_pictures` needs to know of each picture."""
    scale = DOTS / PIXELS if file_format == "png" else 96 / PIXELS  # Chrome has 96 pixels an inch
    jobs: list[dict[str, Any]] = []
    for figure, picture in zip(figures, pictures, strict=True):
        size = {"width": figure.layout.width, "height": figure.layout.height}
        jobs.append({"fig": figure, "path": picture, "opts": {**size, "scale": scale}})
    return jobs


def in_points(svg: Path) -> None:
    """Write the size of Kaleido's SVG in points, because programs differ on what a pixel is."""
    text = svg.read_text(encoding="utf-8")
    head, tag, rest = text.partition(">")
    points = re.sub(
        r'\b(width|height)="([\d.]+)"',
        lambda match: f'{match[1]}="{float(match[2]) * 72 / 96:.2f}pt"',
        head,
    )
    svg.write_text(points + tag + rest, encoding="utf-8")


def _is_heading(note: go.layout.Annotation) -> bool:
    """Whether an annotation is the heading of a panel in the upper row."""
    return note.yref == "paper" and note.y is not None and note.y > 0.98 and not note.textangle


def _has_legend(trace: BaseTraceType) -> bool:
    return "showlegend" in trace and trace.showlegend is not False and bool(trace.name)


def _legend_lines(figure: go.Figure, pixels: float) -> int:
    """About how many lines the legend takes below the plot, where it has columns of one width."""
    names = [re.sub("<.*?>", "", trace.name) for trace in figure.select_traces(_has_legend)]
    if len(names) < 2:
        return 0
    columns = pixels // (55 + 0.6 * FONT * max(map(len, names)))
    return math.ceil(len(names) / max(1, columns))
