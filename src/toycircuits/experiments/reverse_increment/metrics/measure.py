"""All measurements of one model: does attention mirror the string, and where is the answer?

Everything is measured over the held-out strings, at the positions that predict the answer. Each
number has its control beside it: the network before training, other diagonals, other symbols.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.reverse_increment.metrics.activations import activations
from toycircuits.experiments.reverse_increment.metrics.mirror import mirror_table
from toycircuits.experiments.reverse_increment.metrics.readings import confusion_table, readings
from toycircuits.experiments.reverse_increment.metrics.samples import sample_tables
from toycircuits.experiments.reverse_increment.metrics.training_start import training_start
from toycircuits.experiments.reverse_increment.task import DataSettings, evaluate, part

__all__ = ["MeasureSettings", "measure", "training_start"]  # what core/slices.py looks for


class MeasureSettings(Settings):
    """What to measure.

    Attributes:
        n_samples: number of held-out strings with rows of their own, evenly spaced in their order.
    """

    n_samples: int = Field(ge=1, le=20)

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for more samples than there are held-out strings."""
        if self.n_samples > (holdout := data.n_strings - data.n_train):
            allowed = f"at most the held-out strings, {holdout}"
            raise InputError(f"measure.n_samples: found {self.n_samples}; allowed: {allowed}")


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
    holdout = part(data, "holdout")
    inputs, targets = holdout["inputs"], holdout["targets"]
    untrained, course = mirror_course(model, states, inputs)
    models = {"trained": model, "untrained": untrained}
    acts = {case: activations(network, inputs) for case, network in models.items()}
    shifts = range(1 - task.length, task.length)
    mirror = [mirror_table(acts[case], shifts).assign(case=case) for case in models]
    read = readings(models, acts)
    tables = sample_tables(model, acts["trained"], holdout, settings.n_samples)
    tables |= {"mirror": pd.concat(mirror), "mirror_course": course}
    tables["confusion"] = confusion_table(read, targets, task.n_symbols)
    with torch.no_grad():
        metrics = evaluate(model, data)
    return tables, metrics | key_metrics(tables["mirror"], read, targets, task.n_symbols)


def mirror_course(
    model: Transformer,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    inputs: Int[Tensor, "string pos"],
) -> tuple[Transformer, pd.DataFrame]:
    """The network of the first checkpoint, and `mirror_table` at every checkpoint."""
    first, at_step = copy.deepcopy(model), copy.deepcopy(model)
    course: list[pd.DataFrame] = []
    for step, state in states:
        at_step.load_state_dict(dict(state))
        if not course:
            first.load_state_dict(dict(state))
        course.append(mirror_table(activations(at_step, inputs), [0]).assign(step=step))
    return first, pd.concat(course)


def key_metrics(
    mirror: pd.DataFrame,
    read: Mapping[str, Int[Tensor, "string symbol"]],
    targets: Int[Tensor, "string symbol"],
    n_symbols: int,
) -> dict[str, float]:
    """Weights and shares on the anti-diagonal, and how often each reading is the answer.

    `..._plus_s` says how often the reading is the answer plus s, modulo `n_symbols`.
    """
    metrics: dict[str, float] = {}
    for row in mirror[mirror["shift"] == 0].to_dict("records"):
        name = f"layer{row['layer']}_head{row['head']}_{row['case']}"
        metrics[f"mirror_weight_{name}"] = row["weight"]
        metrics[f"mirror_share_{name}"] = row["argmax_share"]
    for case, symbols in read.items():
        name = case.replace(", ", "_")
        for shift in range(n_symbols):
            hits = (symbols == (targets + shift) % n_symbols).double().mean().item()
            metrics[f"{name}_is_answer" + (f"_plus_{shift}" if shift else "")] = hits
    return metrics
