"""One look for all figures, and what a slice says of each."""

from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go
import plotly.io as pio

# Okabe and Ito's palette: colour-blind readers can distinguish it, and most colours in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
GREY = "#777777"  # controls, floors, chance
DASHES = ("solid", "dash", "dot", "dashdot")  # a second means where colours are more than four
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
# Plotly sets powers of ten a quarter larger than other ticks, which have 14 pixels.
LOG = {"type": "log", "tickfont_size": 14 / 1.25, "exponentformat": "power"}
LOG_AXIS = LOG | {"dtick": 1}
LEGEND_BELOW = {  # clear of the axis titles, however high the figure
    **{"orientation": "h", "xref": "container", "x": 0.5, "xanchor": "center"},
    **{"yref": "container", "y": 0.01, "yanchor": "bottom"},
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
        xaxis=AXIS | {"exponentformat": "SI"},  # steps: 20k takes less room than a power of ten
        yaxis=AXIS,
        colorscale={"sequential": SEQUENTIAL, "diverging": DIVERGING},
        coloraxis={"colorbar": {"title": {"side": "right"}}},
        legend={"bgcolor": "rgba(255,255,255,0.7)"},
    )
)
pio.templates["toycircuits"] = TEMPLATE
pio.templates.default = "toycircuits"


@dataclass(frozen=True)
class Drawing:
    """A figure that is not drawn yet.

    Attributes:
        make: reads the tables that the figure needs, and draws it. Raises a `KeyError` with the
            name of a table that is not there.
        over_training: whether the figure shows how something changes while a model trains, such
            as a curve over steps. It then has nothing to show of a model without its training.
    """

    make: Callable[[], go.Figure]
    over_training: bool = False


def bare_facets(figure: go.Figure) -> go.Figure:
    """Facet headings without the name of the column."""
    figure.for_each_annotation(lambda note: note.update(text=note.text.partition("=")[2]))
    return figure
