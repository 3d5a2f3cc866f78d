"""Figure of the ablations."""

from collections.abc import Mapping

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from toycircuits.core.plotting import COLORS, GREY, bare_facets
from toycircuits.core.tables import mean_and_range
from toycircuits.experiments.reverse_increment.figures.curves import UNTITLED_BELOW

METHODS = {"none": "nothing", "weight_zero": "weights zeroed", "mean": "output at its mean"}
LIGHT_GREY = "#bbbbbb"


def in_words(ablations: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns `what` and `by`, which say in words what was ablated and how.

    The rows of the restored model are left out.
    """
    table = ablations[ablations["method"] != "restored"]
    layered = ~table["layer"].isin(["none", "all"])
    where = ("layer " + table["layer"].astype(str) + " ").where(layered, "")
    table = table.assign(what=where + table["component"], by=table["method"].map(METHODS))
    table.loc[table["component"].str.startswith("random"), "by"] = "random weights zeroed"
    return table


def ablation_bars(ablations: pd.DataFrame, commonest: Mapping[str, float]) -> go.Figure:
    """Share of held-out symbols right under each ablation.

    Args:
        commonest: run -> share of symbols right of a model that always writes the commonest one.
    """
    table = in_words(ablations)
    bars = list(table["what"].unique())
    figure = px.bar(
        mean_and_range(table, ["run", "what", "by"], "accuracy"),
        x="mean",
        y="what",
        color="by",
        facet_col="run",
        error_x="up",
        error_x_minus="down",
        orientation="h",
        category_orders={"what": bars},
        color_discrete_sequence=(GREY, *COLORS[:2], LIGHT_GREY),
        labels={"mean": "held-out symbols right", "what": "", "by": ""},
        title="What is left without a component (dashed: the commonest symbol, always)",
        height=520,
    )
    for column, run in enumerate(table["run"].unique(), start=1):
        line = {"line_dash": "dash", "line_color": "black", "row": 1, "col": column}
        figure.add_vline(commonest[run], **line)
    # Plotly's own choice of range would cut off bars of the first traces.
    figure.update_xaxes(range=[0, 1.05]).update_yaxes(range=[-0.6, len(bars) - 0.4])
    return bare_facets(figure).update_layout(legend=UNTITLED_BELOW)
