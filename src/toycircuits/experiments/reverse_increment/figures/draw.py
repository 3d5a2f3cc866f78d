"""Summaries and figures of the reversed strings, from their tables.

Pictures of one model show the first seed of each run. Curves show a line for each model, and bars
show the mean over seeds, and over the draws of a control, with the range.
"""

from collections.abc import Mapping
from itertools import takewhile

import pandas as pd
import plotly.graph_objects as go
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.plotting import Drawing
from toycircuits.core.tables import MODEL
from toycircuits.experiments.reverse_increment.figures import attention, curves, residual, summaries
from toycircuits.experiments.reverse_increment.figures.ablations import ablation_bars


class RenderSettings(Settings):
    """What counts as a success.

    Attributes:
        success_at_least: share of right held-out symbols, or strings, from which a seed succeeds.
    """

    success_at_least: float = Field(gt=0, le=1)


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Final values of each model; success rates, differences, mirrored attention and readings."""
    models = tables["training"].groupby(MODEL, sort=False).last().reset_index()
    return {
        "models": models,
        "success": summaries.success_rates(models, settings.success_at_least),
        "differences": summaries.differences(models),
        "mirror_summary": summaries.mirror_summary(tables["mirror"]),
        "readings": summaries.right_readings(tables["confusion"]),
    }


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, Drawing]:
    """All figures, by name."""

    def rows(name: str) -> pd.DataFrame:
        return short_names(tables[name])

    def ablated() -> go.Figure:
        return ablation_bars(rows("ablations"), summaries.commonest_share(rows("confusion")))

    return {
        **draw_curves(tables),
        "ablations": Drawing(ablated),
        **draw_patterns(tables),
        "mirror": Drawing(lambda: attention.mirror(rows("mirror"))),
        "mirror_course": Drawing(
            lambda: attention.mirror_course(rows("mirror_course")), over_training=True
        ),
        "similarity": Drawing(lambda: residual.similarity(rows("similarity"))),
        "confusion": Drawing(lambda: residual.confusion(rows("confusion"))),
        "mlp_output": Drawing(lambda: residual.mlp_output(rows("mlp"))),
    }


def draw_curves(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    """The curves of the training log."""

    def log() -> pd.DataFrame:
        return short_names(tables["training"])

    return {
        "loss": Drawing(lambda: curves.loss(log()), over_training=True),
        "accuracy": Drawing(lambda: curves.accuracy(log(), "accuracy"), over_training=True),
        "accuracy_string": Drawing(
            lambda: curves.accuracy(log(), "accuracy_string"), over_training=True
        ),
        "learning_rate": Drawing(lambda: curves.learning_rate(log()), over_training=True),
    }


def draw_patterns(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    """The attention patterns: of the first seed, a figure for each run; then of every seed."""

    def rows() -> pd.DataFrame:
        return short_names(tables["patterns"])

    def of_run(run: str) -> Drawing:
        return Drawing(lambda: attention.attention(rows(), run))

    runs = rows()["run"].unique().tolist() if "patterns" in tables else []
    return {
        **{f"attention_{run}": of_run(run) for run in runs},
        "attention_seeds": Drawing(lambda: attention.attention_seeds(rows())),
    }


def short_names(table: pd.DataFrame) -> pd.DataFrame:
    """The table with runs' names cut by the words with which all of them begin.

    >>> short_names(pd.DataFrame({"run": ["copy_slow", "copy_fast"]}))["run"].tolist()
    ['slow', 'fast']
    """
    beginnings = zip(*(run.split("_")[:-1] for run in table["run"].unique()), strict=False)
    shared = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, beginnings)]
    return table.assign(run=table["run"].str.removeprefix("_".join([*shared, ""])))
