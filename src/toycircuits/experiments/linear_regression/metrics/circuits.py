"""The QK and OV circuits of the heads, read from the weights.

Of head h: QK_h = W_Q W_K^T / sqrt(d + 1), with w_h the mean of its first d diagonal entries, and
OV_h = W_V W_O, with mu_h its last entry.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toycircuits.experiments.linear_regression.metrics.estimators import best_rate
from toycircuits.experiments.linear_regression.model import InContextAttention
from toycircuits.experiments.linear_regression.task import DataSettings

Row = dict[str, float]
Circuits = list[tuple[Tensor, Tensor]]  # of each layer: QK and OV, [head, d_model, d_model or 1]


def circuits(model: InContextAttention) -> Circuits:
    """QK and OV of every head in float64; the OV of a stack's last layer includes its read-out."""
    with torch.no_grad():
        layers = [(layer.qk().double(), layer.ov().double()) for layer in model.layers]
        if model.W_read is not None:
            qk, ov = layers[-1]
            layers[-1] = qk, ov @ model.W_read.double()
    return layers


def weights_of(layer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The w and mu [head] of a layer: mean x-diagonal of its QK, last entry of its OV.

    >>> qk = torch.diag(torch.tensor([0.5, 0.3, 7.0])).unsqueeze(0)
    >>> w, mu = weights_of((qk, torch.tensor([[[9.0], [9.0], [2.0]]])))
    >>> round(w.item(), 6), mu.item()
    (0.4, 2.0)
    """
    qk, ov = layer
    return qk.diagonal(dim1=1, dim2=2)[:, :-1].mean(1), ov[:, -1, -1]


def live_heads(layer: tuple[Tensor, Tensor], ratio: float) -> Tensor:
    """Which heads [head] have a |w mu| of at least `ratio` of the largest."""
    w, mu = weights_of(layer)
    strength = (w * mu).abs()
    return strength >= ratio * strength.max()


def head_rows(layers: Circuits, step: int, live_ratio: float) -> Iterator[Row]:
    """One row a head: w and mu, whether it is live, and the largest other entries of QK and OV.

    In one layer the last entry of the query is zero. The last row of QK is then never read and
    keeps its initial values, so it counts under `qk_unread` and not under `qk_other`.
    """
    for number, (qk, ov) in enumerate(layers):
        w, mu = weights_of((qk, ov))
        other = qk.clone()
        other[:, range(qk.shape[1] - 1), range(qk.shape[1] - 1)] = 0
        read = other[:, :-1] if len(layers) == 1 else other
        rest = ov.clone()
        rest[:, -1, -1] = 0
        columns = {
            "w": w,
            "mu": mu,
            "w_variance": qk.diagonal(dim1=1, dim2=2)[:, :-1].var(1, unbiased=False),
            "qk_other": read.abs().amax((1, 2)),
            "qk_unread": other[:, -1].abs().amax(1),
            "ov_other": rest.abs().amax((1, 2)),
            "live": live_heads((qk, ov), live_ratio),
        }
        for head in range(len(qk)):
            values = {name: column[head].item() for name, column in columns.items()}
            yield {"step": step, "layer": number, "head": head, **values}


def matrix_rows(matrices: Sequence[Tensor], step: int) -> Iterator[Row]:
    """One row for each entry of each layer's matrices [head, row, col]."""
    for layer, stacked in enumerate(matrices):
        for (head, row, col), value in np.ndenumerate(stacked.cpu().numpy()):
            place = {"layer": layer, "head": head, "row": row, "col": col}
            yield {"step": step, **place, "value": value}


def circuit_tables(
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    model: InContextAttention,
    qk_steps: Sequence[int],
    live_ratio: float,
) -> dict[str, pd.DataFrame]:
    """Every head's numbers at each checkpoint, QK at `qk_steps`, and OV at the end, by name.

    Args:
        model: takes the weights of each checkpoint; afterwards it holds those of the last.
    """
    heads: list[Row] = []
    qk: list[Row] = []
    for step, state in states:
        model.load_state_dict(dict(state))
        layers = circuits(model)
        heads += head_rows(layers, step, live_ratio)
        if step in qk_steps:
            qk += matrix_rows([layer[0] for layer in layers], step)
    ov = matrix_rows([layer[1] for layer in layers], step)
    return {"heads": pd.DataFrame(heads), "qk": pd.DataFrame(qk), "ov": pd.DataFrame(ov)}


def sums(layer: tuple[Tensor, Tensor], task: DataSettings, live_ratio: float) -> dict[str, float]:
    """Sums of w and mu over the heads of one layer, beside the best rate.

    `imbalance` is |sum of mu| over the mean of the sums of positive and of negative mu, in size.
    """
    w, mu = weights_of(layer)
    positive, negative = mu.clamp(min=0).sum(), mu.clamp(max=0).sum()
    live = live_heads(layer, live_ratio)
    same_sign = (w.sign() == mu.sign())[live].double().mean()
    return {
        "n_heads": len(w),
        "n_live": int(live.sum()),
        "same_sign": same_sign.item(),
        "mu_positive": positive.item(),
        "mu_negative": negative.item(),
        "imbalance": ((positive + negative).abs() / ((positive - negative) / 2)).item(),
        "w_mu": (w * mu).sum().item(),
        "best_rate": best_rate(task.d, task.n_examples, task.delta),
    }
