"""How much of the logits is sum_k cos(w_k (a + s b - c)).

c is a candidate answer; s is -1 for subtraction and 1 for addition.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toycircuits.experiments.modular_arithmetic.metrics.activations import Activations, Problem
from toycircuits.experiments.modular_arithmetic.task import cross_entropy


def class_means(
    logits: Float[Tensor, "pair p"], labels: Int[Tensor, " pair"]
) -> Float[Tensor, " p"]:
    """Mean of the logit cube L[a, b, c] over each class of (a + s b - c) mod p."""
    p = logits.shape[1]
    by_label = torch.zeros(p, p, dtype=torch.float64, device=logits.device)
    by_label.index_add_(0, labels, logits.to(torch.float64))
    x = torch.arange(p, device=logits.device)
    return by_label[x, (x - x.unsqueeze(1)) % p].sum(1) / len(labels)


def periodicity(
    logits: Float[Tensor, "pair p"], labels: Int[Tensor, " pair"]
) -> tuple[Float[Tensor, " frequency"], Float[Tensor, " frequency"]]:
    """Projections of the logit cube on unit-norm cos(w_k (a + s b - c)), and cosine similarities.

    All cells of a class of (a + s b - c) share the value of the cosine. The projection is therefore
    a Fourier transform of the p class means, and no cube of cosines is made.
    """
    p = logits.shape[1]
    spectrum = torch.fft.rfft(class_means(logits, labels)).real[1:]
    coefficients = p**2 * spectrum / (p**3 / 2) ** 0.5
    return coefficients, coefficients / logits.to(torch.float64).norm()


def cosine_logits(
    coefficients: Mapping[int, float], labels: Int[Tensor, " pair"], p: int
) -> Float[Tensor, "pair p"]:
    """Logits made of sum_k coefficient_k cos(w_k (a + s b - c)), each cosine of unit norm."""
    difference = (labels.unsqueeze(1) - torch.arange(p, device=labels.device)) % p
    wave = torch.zeros(p, dtype=torch.float64, device=labels.device)
    x = torch.arange(p, dtype=torch.float64, device=labels.device)
    for k, coefficient in coefficients.items():
        wave += coefficient * (2 * torch.pi * k * x / p).cos() / (p**3 / 2) ** 0.5
    return wave[difference]


def residual(cosines: Float[Tensor, " frequency"], key: list[int]) -> float:
    """Share of the logits' norm that the key cosines leave unexplained."""
    explained = sum(cosines[k - 1].item() ** 2 for k in key)
    return max(0.0, 1 - explained) ** 0.5


def logit_table(acts: Activations, problem: Problem, noise: torch.Generator) -> pd.DataFrame:
    """Coefficient and cosine similarity of each frequency.

    The other sign, and logits of noise that `noise` draws, are the controls.
    """
    coefficients, cosines = periodicity(acts.logits, problem.labels)
    random = torch.randn(acts.logits.shape, generator=noise).to(acts.logits.device)
    columns = {
        "frequency": range(1, problem.p // 2 + 1),
        "key": [k + 1 in problem.key for k in range(problem.p // 2)],
        "coefficient": coefficients.tolist(),
        "cosine": cosines.tolist(),
        "other_sign": periodicity(acts.logits, problem.other_sign)[1].tolist(),
        "noise": periodicity(random, problem.labels)[1].tolist(),
    }
    return pd.DataFrame(columns)


def approximation_losses(acts: Activations, problem: Problem) -> dict[str, float]:
    """Loss over all pairs, in nats, of the model and of its logits' key cosines alone."""
    coefficients, _ = periodicity(acts.logits, problem.labels)
    of_key = {k: coefficients[k - 1].item() for k in problem.key}
    approximation = cosine_logits(of_key, problem.labels, problem.p)
    return {
        "all_pairs_loss": cross_entropy(acts.logits, problem.labels).item(),
        "key_cosines_loss": cross_entropy(approximation, problem.labels).item(),
    }
