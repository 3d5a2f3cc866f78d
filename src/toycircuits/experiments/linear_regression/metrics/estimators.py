"""Estimators of y_q. Each gives a prediction from the first n examples, for every n in `lengths`.

All are computed in float64. Running sums over the examples make all lengths together as cheap as
the largest one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def sum_first(
    values: Float[Tensor, "batch example *rest"], lengths: Sequence[int]
) -> Float[Tensor, "batch length *rest"]:
    """Sums over the first n examples."""
    index = torch.tensor([length - 1 for length in lengths], device=values.device)
    return values.cumsum(1)[:, index]


def attend(
    scores: Float[Tensor, "batch example head"],
    values: Float[Tensor, "batch example head"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch length"]:
    """Softmax-weighted mean of the values per head, summed over the heads."""
    weights = (scores - scores.amax(1, keepdim=True)).exp()
    return (sum_first(weights * values, lengths) / sum_first(weights, lengths)).sum(2)


def kernel(
    w: Float[Tensor, " head"],
    mu: Float[Tensor, " head"],
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch length"]:
    """The kernel estimator sum_h mu_h sum_i y_i softmax_i(w_h x_q.x_i)."""
    products = torch.einsum("bk,blk->bl", z_q[:, :-1], z[:, :, :-1])
    return attend(products.unsqueeze(2) * w, z[:, :, -1:] * mu, lengths)


def gradient_descent(
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
    centred: bool = False,
) -> Float[Tensor, "batch length"]:
    """One step from zero with rate 1: (1/n) sum_i y_i <x_i, x_q>; centred, with x_i less its mean.

    >>> z = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).double()  # (x, y) = (1, 2), (3, 4)
    >>> z_q = torch.tensor([[10.0, 0.0]]).double()
    >>> gradient_descent(z, z_q, [1, 2]).tolist()  # 2*10, (2*10 + 4*30) / 2
    [[20.0, 70.0]]
    >>> gradient_descent(z, z_q, [2], centred=True).tolist()  # (2*-10 + 4*10) / 2
    [[10.0]]
    """
    n = torch.tensor(lengths, device=z.device)
    products, y = torch.einsum("bk,blk->bl", z_q[:, :-1], z[:, :, :-1]), z[:, :, -1]
    step = sum_first(y * products, lengths) / n
    if not centred:
        return step
    return step - sum_first(y, lengths) * sum_first(products, lengths) / n**2


def best_rate(d: int, length: int, delta: float) -> float:
    """Rate of gradient descent with the least error: 1 / (1 + (1 + delta^2) d / L).

    >>> round(best_rate(5, 40, 0.01), 4)
    0.8889
    """
    return 1 / (1 + (1 + delta**2) * d / length)


def ridge(
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
    noise_variance: float,
) -> Float[Tensor, "batch length"]:
    """The Bayes-optimal prediction x_q (X^T X + s^2 I)^-1 X^T y, s^2 the noise's variance.

    Without noise, its limit: the shortest beta that fits.
    """
    x, y = z[:, :, :-1], z[:, :, -1:]
    gram = sum_first(x.unsqueeze(3) * x.unsqueeze(2), lengths)
    moment = sum_first(x * y, lengths)
    if noise_variance > 0:
        penalty = noise_variance * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
        beta = torch.linalg.solve(gram + penalty, moment)
    else:
        beta = (torch.linalg.pinv(gram, hermitian=True) @ moment.unsqueeze(3)).squeeze(3)
    return torch.einsum("bk,bnk->bn", z_q[:, :-1], beta)
