"""What the heads compute: their QK and OV circuits, and the estimators that these amount to.

Read from the weights, of head h: QK_h = W_Q W_K^T / sqrt(d + 1), with w_h the mean of its first d
diagonal entries, and OV_h = W_V W_O, with mu_h its last entry. If every QK is w_h times the
identity over the entries of x, and every OV is zero but for its last entry, then one layer is the
kernel estimator

    sum_h mu_h sum_i y_i softmax_i(w_h x_q.x_i).

If the mu sum to zero, its limit for small w is one step of gradient descent on the centred
examples, with the rate sum_h w_h mu_h. The best rate is 1 / (1 + (1 + delta^2) d / L).
"""

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Self

import pandas as pd
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.experiments.linear_regression.metrics.circuits import (
    circuit_tables,
    circuits,
    sums,
)
from toycircuits.experiments.linear_regression.metrics.errors import (
    context_table,
    loss_table,
    validation_predictions,
)
from toycircuits.experiments.linear_regression.metrics.one_head import one_head_table
from toycircuits.experiments.linear_regression.metrics.training_start import training_start
from toycircuits.experiments.linear_regression.model import InContextAttention
from toycircuits.experiments.linear_regression.task import MAX_NUMBERS, DataSettings

__all__ = ["LengthSettings", "MeasureSettings", "measure", "training_start"]

Tables = dict[str, pd.DataFrame]


class LengthSettings(Settings):
    """Numbers of examples: first, first + step, ... up to last."""

    first: int = Field(ge=1, le=100_000)
    last: int = Field(ge=1, le=100_000)
    step: int = Field(ge=1, le=100_000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last: found {self.last}; allowed is at least first, {self.first}")
        return self

    @property
    def all(self) -> list[int]:
        """Every length.

        >>> LengthSettings(first=1, last=15, step=5).all
        [1, 6, 11]
        """
        return list(range(self.first, self.last + 1, self.step))


class MeasureSettings(Settings):
    """What to measure.

    Attributes:
        qk_steps: steps whose QK matrices go into a table; those before the end need a checkpoint.
        live_ratio: a head is live if |w mu| is at least this share of the largest of its layer.
        lengths: numbers of examples at which errors are measured.
        sequences: how many sequences of the largest length errors are measured on.
        seed: seed of these.
    """

    qk_steps: tuple[int, ...] = Field(min_length=1)
    live_ratio: float = Field(gt=0, le=1)
    lengths: LengthSettings
    sequences: int = Field(ge=2, le=10_000_000)
    seed: int = Field(ge=0, lt=2**63)

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for a step without checkpoint, or too many numbers at once."""
        every, length = train.checkpoint_every, train.length
        if missing := [step for step in self.qk_steps if step < length and step % every]:
            allowed = f"steps with a checkpoint: 0, {every}, {2 * every}, ... {length}"
            raise InputError(f"measure.qk_steps: found {missing[0]}; allowed are {allowed}")
        if data.numbers(self.sequences, self.lengths.last) > MAX_NUMBERS:
            allowed = f"at most {MAX_NUMBERS // data.numbers(1, self.lengths.last)} of this length"
            raise InputError(f"measure.sequences: found {self.sequences}; allowed are {allowed}")


def measure(
    model: InContextAttention,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, float]]:
    """All tables of one trained model by name, and its metrics by name.

    The first checkpoint is the untrained network.
    """
    checkpoints = iter(states)
    first = next(checkpoints)
    untrained = copy.deepcopy(model)
    untrained.load_state_dict(dict(first[1]))
    of_training = itertools.chain([first], checkpoints)
    tables = circuit_tables(
        of_training, copy.deepcopy(model), settings.qk_steps, settings.live_ratio
    )
    predicted = validation_predictions(model, untrained, data, task)
    losses = tables["losses"] = loss_table(predicted, data["y_q"].double())
    lengths, sequences, seed = settings.lengths.all, settings.sequences, settings.seed
    context = context_table(model, untrained, task, lengths, sequences, seed)
    tables["context"] = context
    names = losses["estimator"].str.replace(r"\W+", "_", regex=True)
    metrics = {f"mse_{name}": float(mse) for name, mse in zip(names, losses["mse"], strict=True)}
    trained = context[context["estimator"] == "transformer"]
    metrics["largest_relative_error"] = float((trained["standard_error"] / trained["mse"]).max())
    if len(model.layers) > 1:
        return tables, metrics
    further_tables, further_metrics = _of_one_layer(model, predicted, task, settings)
    return tables | further_tables, metrics | further_metrics


def _of_one_layer(
    model: InContextAttention,
    predicted: Mapping[str, Float[Tensor, " sequence"]],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, float]]:
    """Sums over the heads of the only layer; of a single head also the best one.

    The metric `kernel_gap` is the mean squared difference of the transformer and its kernel
    estimator over the mean squared prediction. `w_one_head_at_large_d` is the best w of a single
    head over 1 / sqrt(d), at the largest d tried.
    """
    metrics = sums(circuits(model)[0], task, settings.live_ratio)
    tables = {"sums": pd.DataFrame([metrics])}
    gap = ((predicted["transformer"] - predicted["kernel"]) ** 2).mean()
    metrics["kernel_gap"] = (gap / (predicted["transformer"] ** 2).mean()).item()
    if metrics["n_heads"] == 1:
        table = tables["one_head"] = one_head_table(task, settings.sequences, settings.seed)
        metrics |= {f"{name}_one_head": float(table[name].iloc[0]) for name in ("w", "mse")}
        largest = table.iloc[-1]
        metrics["w_one_head_at_large_d"] = float(largest["w"] / largest["large_d_w"])
    return tables, metrics
