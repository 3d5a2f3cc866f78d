"""Progress measures: how far the circuit has formed at one checkpoint.

The restricted loss is that of the key frequencies alone, the excluded loss that of everything else.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic.metrics.activations import Activations, Problem
from toycircuits.experiments.modular_arithmetic.metrics.embedding import number_embedding
from toycircuits.experiments.modular_arithmetic.metrics.fourier import (
    component_norms,
    fourier_basis,
)
from toycircuits.experiments.modular_arithmetic.task import accuracy, cross_entropy


def projected_logits(
    acts: Activations, along: Float[Tensor, "direction pair"]
) -> Float[Tensor, "pair p"]:
    """What the neurons' projections on the unit vectors `along` add to the logits."""
    coefficients = along @ acts.mlp.to(torch.float64)
    return along.T @ (coefficients @ acts.W_logit.to(torch.float64))


def restricted_logits(
    acts: Activations, along: Float[Tensor, "direction pair"]
) -> Float[Tensor, "pair p"]:
    """Logits of the neurons projected on `along`, their mean over all pairs set to the model's."""
    logits = projected_logits(acts, along)
    return logits + acts.logits.to(torch.float64).mean(0) - logits.mean(0)


def excluded_logits(
    acts: Activations, along: Float[Tensor, "direction pair"]
) -> Float[Tensor, "pair p"]:
    """Logits of the model with the projections on `along` taken out of the neurons."""
    return acts.logits.to(torch.float64) - projected_logits(acts, along)


def gini(x: Float[Tensor, " n"]) -> float:
    """Gini coefficient: 0 where all values are equal, near 1 where one value makes up the sum.

    >>> gini(torch.ones(4)), gini(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    (0.0, 0.75)
    """
    x = x.to(torch.float64).sort().values
    n = len(x)
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    return ((2 * ranks - n - 1) @ x / (n * x.sum())).item()


def progress(model: Transformer, acts: Activations, problem: Problem) -> dict[str, float]:
    """Progress measures of one checkpoint: losses in nats, Gini coefficients, squared weights."""
    row: dict[str, float] = {}
    for name in ("train", "test"):
        pairs = getattr(problem, name)
        row[f"{name}_loss"] = cross_entropy(acts.logits[pairs], problem.labels[pairs]).item()
        row[f"{name}_accuracy"] = accuracy(acts.logits[pairs], problem.labels[pairs])
    for name, along in problem.along.items():
        suffix = "" if name == "key" else f"_{name}"
        restricted = restricted_logits(acts, along)[problem.test]
        excluded = excluded_logits(acts, along)[problem.train]
        test_labels, train_labels = problem.labels[problem.test], problem.labels[problem.train]
        row[f"restricted_loss{suffix}"] = cross_entropy(restricted, test_labels).item()
        row[f"excluded_loss{suffix}"] = cross_entropy(excluded, train_labels).item()
    row["restricted_ratio"] = row["restricted_loss"] / row["test_loss"]
    basis = fourier_basis(problem.p)[0].to(acts.mlp.device)
    row["gini_W_E"] = gini(component_norms(number_embedding(model), basis))
    row["gini_W_logit"] = gini(component_norms(acts.W_logit.T, basis))
    row["sum_squared_weights"] = sum(
        parameter.detach().to(torch.float64).pow(2).sum().item() for parameter in model.parameters()
    )
    row["logit_norm"] = acts.logits.to(torch.float64).norm().item()
    return row
