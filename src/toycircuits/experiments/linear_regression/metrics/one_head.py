"""The best single head: f = mu sum_i y_i softmax_i(w x_q.x_i) with the least error.

One head cannot have a small w. The best one is near 1 / sqrt(d), the nearer the larger d is.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.experiments.linear_regression.task import DataSettings, sample

LARGER = (1, 2, 4, 8)  # factors of d and L at which the best single head is looked for
SCALED_W = np.arange(0.5, 2, 0.05)  # w sqrt(d) that are tried; the best lies between two of them
PARTS = 16  # of the sequences; leaving out each in turn gives a standard error


def one_head_sums(
    w: Float[Tensor, " w"],
    x: Float[Tensor, "batch example d"],
    x_q: Float[Tensor, "batch d"],
    noise_variance: float,
) -> tuple[Float[Tensor, " w"], Float[Tensor, " w"]]:
    """Sums over sequences of E[y_q f] and E[f^2], f = sum_i y_i softmax_i(w x_q.x_i).

    The means over beta and the noise are exact. With m the softmax's mean of x they are x_q.m, and
    |m|^2 plus the noise's variance times the sum of squared weights.
    """
    products = torch.einsum("bd,bld->bl", x_q, x).unsqueeze(1)
    weights = (w.unsqueeze(1) * products).softmax(2)  # [batch, w, example]
    mean = weights @ x
    square = mean.pow(2).sum((0, 2)) + noise_variance * weights.pow(2).sum((0, 2))
    return (weights * products).sum((0, 2)), square


def argmax_of_parabola(w: np.ndarray, gain: np.ndarray) -> float:
    """Where a parabola through the largest value of `gain` and its two neighbours is largest.

    >>> argmax_of_parabola(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 3.0, 3.0, 0.0]))
    1.5
    """
    i = int(np.clip(gain.argmax(), 1, len(w) - 2))
    left, mid, right = gain[i - 1 : i + 2]
    return float(w[i] + (w[i + 1] - w[i]) * (left - right) / (left - 2 * mid + right) / 2)


def one_head_best(
    w: Float[np.ndarray, " w"], moments: Float[np.ndarray, "2 w"], d: int
) -> tuple[float, float, float]:
    """The best w, its mu and its error, from A(w) = E[y_q f] and B(w) = E[f^2].

    The best mu for a w is A / B, and the error is then d - A^2 / B.

    Args:
        w: an even grid around the best w.
        moments: A and B at each w of the grid.
    """
    moment, square = moments
    best = argmax_of_parabola(w, moment**2 / square)
    a, b = (float(np.interp(best, w, values)) for values in (moment, square))
    return best, a / b, d - a**2 / b


def one_head_table(task: DataSettings, sequences: int, seed: int) -> pd.DataFrame:
    """The single head with the least error, with the standard error of its w.

    One row for the d of `task`, and one for each larger d at the same d / L.

    Args:
        sequences: how many to draw; fewer for the larger d.
        seed: seed of these.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for factor in LARGER:
        d, length = task.d * factor, task.n_examples * factor
        larger = task.model_copy(update={"d": d, "n_examples": length})
        size = max(2, sequences // (PARTS * factor**2))
        grid = SCALED_W / d**0.5
        moments = _moments_of_parts(grid, larger, size, generator)
        w, mu, mse = one_head_best(grid, moments.mean(0), d)
        without_one_part = (moments.sum(0) - moments) / (PARTS - 1)
        left_out = [one_head_best(grid, others, d)[0] for others in without_one_part]
        error = float(np.std(left_out)) * (PARTS - 1) ** 0.5  # the jackknife's
        rows.append(
            {"d": d, "length": length, "sequences": size * PARTS, "w": w, "standard_error": error}
            | {"mu": mu, "mse": mse, "large_d_w": d**-0.5}
        )
    return pd.DataFrame(rows)


def _moments_of_parts(
    grid: Float[np.ndarray, " w"], task: DataSettings, size: int, generator: torch.Generator
) -> Float[np.ndarray, "part 2 w"]:
    """A and B, each over `size` fresh sequences."""
    parts = []
    for _ in range(PARTS):
        drawn = sample(size, task, generator)
        x, x_q = drawn["z"][:, :, :-1].double(), drawn["z_q"][:, :-1].double()
        moments = one_head_sums(torch.from_numpy(grid), x, x_q, task.noise_variance)
        parts.append(torch.stack(moments).numpy() / size)
    return np.stack(parts)
