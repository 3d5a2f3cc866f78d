"""One look for all figures, and one way to write them."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by most.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
GREY = "#777777"  # controls, floors, chance
SEQUENTIAL = "Viridis"
DIVERGING = "RdBu"
WIDTH, HEIGHT, SCALE = 760, 440, 2  # pixels of a static picture, and their multiplier

AXIS = {
    "showline": True,
    "linecolor": "#444444",
    "gridcolor": "#e6e6e6",
    "ticks": "outside",
    "zeroline": False,
    "automargin": True,
    "exponentformat": "power",
}
TEMPLATE = go.layout.Template(
    layout=go.Layout(
        colorway=COLORS,
        font={"family": "DejaVu Sans, Verdana, sans-serif", "size": 14, "color": "#222222"},
        title={
            **{"x": 0.01, "xanchor": "left", "font": {"size": 16}},
            **{"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 16}},
        },
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 76, "r": 24, "t": 56, "b": 76},
        xaxis=AXIS,
        yaxis=AXIS,
        colorscale={"sequential": SEQUENTIAL, "diverging": DIVERGING},
        coloraxis={"colorbar": {"title": {"side": "right"}}},
        legend={"bgcolor": "rgba(255,255,255,0.7)"},
    )
)
pio.templates["toycircuits"] = TEMPLATE
pio.templates.default = "toycircuits"


def bare_facets(figure: go.Figure) -> go.Figure:
    """Facet headings without the name of the column."""
    figure.for_each_annotation(lambda note: note.update(text=note.text.partition("=")[2]))
    return figure


def write_figures(figures: Mapping[str, go.Figure], json_folder: Path, png_folder: Path) -> None:
    """Write every figure as JSON (interactive) and PNG (static).

    Without Chrome, which draws the PNGs, the JSON is written all the same, and a line on standard
    error says how to get the pictures.
    """
    for folder in (json_folder, png_folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for name, figure in figures.items():
        figure.write_json(json_folder / f"{name}.json")
    drawn = list(figures.values())
    # Given one by one: plotly's batch writer does not look at the layouts.
    width = [figure.layout.width or WIDTH for figure in drawn]
    height = [figure.layout.height or HEIGHT for figure in drawn]
    paths = [png_folder / f"{name}.png" for name in figures]
    try:
        # One batch: starting Chrome costs as much as drawing dozens of figures.
        pio.write_images(drawn, paths, width=width, height=height, scale=SCALE)
    except Exception as error:  # Kaleido's and Chrome's failures share no narrower class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        note = f"pictures not drawn: {reason}"
        (png_folder / "NOT_DRAWN.txt").write_text(note + "\n")
        hint = "install Chrome or Chromium, then `dvc repro --force` this stage"
        print(f"warning: {note}; {hint}; tables and interactive figures are safe", file=sys.stderr)
