"""Errors of the model and of every estimator that it is compared with.

Errors are mean squared errors of predictions of y_q, in float64. Controls: the network before
training, and zero as prediction.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.experiments.linear_regression.metrics import stack
from toycircuits.experiments.linear_regression.metrics.circuits import circuits, weights_of
from toycircuits.experiments.linear_regression.metrics.estimators import (
    attend,
    best_rate,
    gradient_descent,
    kernel,
    ridge,
)
from toycircuits.experiments.linear_regression.model import InContextAttention
from toycircuits.experiments.linear_regression.task import DataSettings, sample

DESCENT = "centred gradient descent, best rate"
CHUNK = 64  # sequences evaluated at once; results differ with it by rounding alone


def transformer(
    model: InContextAttention,
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch length"]:
    """The model's own predictions; `lengths` ascend.

    They are computed in ways that are faster than the model's: one layer from its circuits, and a
    stack by `stack.predictions`.
    """
    if len(model.layers) > 1:
        dtype = next(model.parameters()).dtype
        return stack.predictions(model, z.to(dtype), z_q.to(dtype), lengths).double()
    qk, ov = circuits(model)[0]
    scores = torch.einsum("bq,hqk,blk->blh", z_q, qk, z)
    return attend(scores, torch.einsum("blk,hk->blh", z, ov.squeeze(2)), lengths)


def predictions(
    model: InContextAttention,
    untrained: InContextAttention,
    sequences: Mapping[str, Tensor],
    lengths: Sequence[int],
    task: DataSettings,
) -> dict[str, Float[Tensor, "batch length"]]:
    """Every estimator's predictions, by name; only one layer has a kernel estimator."""
    z, z_q = sequences["z"].double(), sequences["z_q"].double()
    descent = gradient_descent(z, z_q, lengths)
    centred = gradient_descent(z, z_q, lengths, centred=True)
    predicted = {"transformer": transformer(model, z, z_q, lengths)}
    if len(model.layers) == 1:
        predicted["kernel"] = kernel(*weights_of(circuits(model)[0]), z, z_q, lengths)
    return predicted | {
        "gradient descent": descent,
        DESCENT: centred * best_rate(task.d, task.n_examples, task.delta),
        "ridge": ridge(z, z_q, lengths, task.noise_variance),
        "untrained": transformer(untrained, z, z_q, lengths),
        "zero": torch.zeros_like(descent),
    }


def mean_and_error(total: Tensor, squares: Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and its standard error, from n values' sum and sum of squares."""
    mean = total / n
    variance = (squares / n - mean**2).clamp(min=0) * n / (n - 1)
    return mean.cpu().numpy(), (variance / n).sqrt().cpu().numpy()


def context_table(
    model: InContextAttention,
    untrained: InContextAttention,
    task: DataSettings,
    lengths: Sequence[int],
    sequences: int,
    seed: int,
) -> pd.DataFrame:
    """Mean squared error of every estimator over the number of examples, and standard errors.

    Args:
        lengths: numbers of examples, ascending.
        sequences: fresh sequences of the largest length on which all lengths are measured.
        seed: seed of these.
    """
    device = next(model.parameters()).device
    longest = task.model_copy(update={"n_examples": lengths[-1]})
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, Tensor] = {}  # sums of squared errors, and of their squares
    for start in range(0, sequences, CHUNK):
        drawn = sample(min(CHUNK, sequences - start), longest, generator)
        drawn = {name: value.to(device) for name, value in drawn.items()}
        target = drawn["y_q"].double().unsqueeze(1)
        for name, predicted in predictions(model, untrained, drawn, lengths, task).items():
            squared = (predicted - target) ** 2
            both = torch.stack([squared.sum(0), (squared**2).sum(0)])
            totals[name] = totals[name] + both if name in totals else both
    tables = []
    for name, (total, squares) in totals.items():
        mse, error = mean_and_error(total, squares, sequences)
        columns = {"estimator": name, "length": lengths, "mse": mse, "standard_error": error}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables)


def validation_predictions(
    model: InContextAttention,
    untrained: InContextAttention,
    data: Mapping[str, Tensor],
    task: DataSettings,
) -> dict[str, Float[Tensor, " sequence"]]:
    """Every estimator's predictions for the sequences to validate on."""
    chunks = []
    for start in range(0, len(data["z"]), CHUNK):
        part = {name: value[start : start + CHUNK] for name, value in data.items()}
        chunks.append(predictions(model, untrained, part, [task.n_examples], task))
    return {name: torch.cat([chunk[name][:, 0] for chunk in chunks]) for name in chunks[0]}


def loss_table(
    predicted: Mapping[str, Float[Tensor, " sequence"]], y_q: Float[Tensor, " sequence"]
) -> pd.DataFrame:
    """Every estimator's error on the sequences to validate on.

    `excess` is the error less that of centred gradient descent at the best rate on the same
    sequences. Most of the variation over sequences is common to both, so the excess has a smaller
    standard error than the error itself, and separates models that are close.
    """
    squared = {name: (values - y_q) ** 2 for name, values in predicted.items()}
    rows = []
    for name, values in squared.items():
        row: dict[str, str | float] = {"estimator": name, "n": len(values)}
        for prefix, of in (("", values), ("excess_", values - squared[DESCENT])):
            mean, error = mean_and_error(of.sum(), (of**2).sum(), len(of))
            row |= {f"{prefix}mse": float(mean), f"{prefix}standard_error": float(error)}
        rows.append(row)
    return pd.DataFrame(rows)
