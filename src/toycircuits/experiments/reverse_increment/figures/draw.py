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


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name."""
    named = {name: short_names(table) for name, table in tables.items() if "seed" in table}
    training, patterns = named["training"], named["patterns"]
    commonest = summaries.commonest_share(named["confusion"])
    runs = patterns["run"].unique()
    return {
        "loss": curves.loss(training),
        "accuracy": curves.accuracy(training, "accuracy"),
        "accuracy_string": curves.accuracy(training, "accuracy_string"),
        "learning_rate": curves.learning_rate(training),
        "ablations": ablation_bars(named["ablations"], commonest),
        **{f"attention_{run}": attention.attention(patterns, run) for run in runs},
        "attention_seeds": attention.attention_seeds(patterns),
        "mirror": attention.mirror(named["mirror"]),
        "mirror_course": attention.mirror_course(named["mirror_course"]),
        "similarity": residual.similarity(named["similarity"]),
        "confusion": residual.confusion(named["confusion"]),
        "mlp_output": residual.mlp_output(named["mlp"]),
    }


def short_names(table: pd.DataFrame) -> pd.DataFrame:
    """The table with runs' names cut by the words with which all of them begin.

    >>> short_names(pd.DataFrame({"run": ["copy_slow", "copy_fast"]}))["run"].tolist()
    ['slow', 'fast']
    """
    beginnings = zip(*(run.split("_")[:-1] for run in table["run"].unique()), strict=False)
    shared = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, beginnings)]
    return table.assign(run=table["run"].str.removeprefix("_".join([*shared, ""])))
