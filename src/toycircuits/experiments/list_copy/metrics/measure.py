"""All measurements of one model: attention patterns, written copies, the separator's vector."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.list_copy.metrics.attention import pattern_table
from toycircuits.experiments.list_copy.metrics.copies import measure_copies
from toycircuits.experiments.list_copy.metrics.separator import ProbeSettings, measure_separator
from toycircuits.experiments.list_copy.metrics.training_start import training_start
from toycircuits.experiments.list_copy.task import (
    DataSettings,
    evaluate,
    evaluation_lists,
    list_row,
)

__all__ = ["MeasureSettings", "measure", "training_start"]  # what core/slices.py looks for


class MeasureSettings(Settings):
    """What to measure.

    Attributes:
        sample: the list whose attention patterns are shown.
        probe: how to probe the separator's vector; null skips all measurements of this vector.
    """

    sample: tuple[int, int]
    probe: ProbeSettings | None

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for a sample outside the task, or more folds than numbers."""
        list_row(self.sample, data, "measure.sample")
        if self.probe is not None and self.probe.folds > data.n_symbols:
            allowed = f"allowed: 2 to {data.n_symbols}"
            raise InputError(f"measure.probe.folds: found {self.probe.folds}; {allowed}")


def measure(
    model: Transformer,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """All tables of one trained model, and its key metrics.

    The first checkpoint is the untrained network.
    """
    sample = list_row(settings.sample, task, "measure.sample")
    inputs = data["all_inputs"]
    name, lists = evaluation_lists(data)
    subsets = {str(settings.sample): inputs[sample : sample + 1], name: lists["inputs"]}
    tables = {"patterns": pattern_table(model, subsets)}
    with torch.no_grad():
        metrics = evaluate(model, data)
    parts = []
    if task.layout != "next_token":
        parts.append(measure_copies(model, lists))
    if settings.probe is not None:
        untrained = copy.deepcopy(model)
        untrained.load_state_dict(dict(next(iter(states))[1]))
        models = {"trained": model, "untrained": untrained}
        parts.append(measure_separator(models, inputs, settings.probe))
    for more_tables, more_metrics in parts:
        tables |= more_tables
        metrics |= more_metrics
    return tables, metrics
