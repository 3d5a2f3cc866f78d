"""The frequencies of the neurons."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.experiments.modular_arithmetic.metrics.activations import Activations, Problem
from toycircuits.experiments.modular_arithmetic.metrics.fourier import (
    component_norms,
    fourier_basis,
    transform_pairs,
)
from toycircuits.experiments.modular_arithmetic.metrics.wide import wide


def neuron_frequencies(
    acts: Float[Tensor, "pair d_mlp"], p: int
) -> Float[Tensor, "d_mlp frequency"]:
    """Share of each neuron's variance over (a, b) that each frequency explains.

    Frequency k takes the nine terms whose row and column in the two-dimensional Fourier transform
    are the constant, sin k or cos k, less the constant-constant term. (The original study's sum
    visited the constant term alone.) A neuron without variance gets zeros.
    """
    basis = fourier_basis(p)[0].to(acts.device)
    power = transform_pairs(acts.to(torch.float64).reshape(p, p, -1), basis).pow(2)
    rounding = 1e-24 * power[0, 0]  # a constant neuron's other terms are this small, and not zero
    power[0, 0] = 0
    total = power.sum((0, 1))
    power *= total > rounding
    shares = []
    for k in range(1, p // 2 + 1):
        index = torch.tensor([0, 2 * k - 1, 2 * k], device=acts.device)
        shares.append(power[index][:, index].sum((0, 1)) / total.clamp_min(1e-300))
    return torch.stack(shares, 1)


def neuron_tables(
    acts: Activations, problem: Problem, noise: torch.Generator
) -> dict[str, pd.DataFrame]:
    """Frequencies of the neurons, whether they are key, and W_logit in the Fourier basis.

    Args:
        noise: draws the control, noise with the shape of the activations.
    """
    p, device = problem.p, acts.mlp.device
    basis, names = fourier_basis(p)
    shares = neuron_frequencies(acts.mlp, p)
    control = neuron_frequencies(torch.randn(acts.mlp.shape, generator=noise).to(device), p)
    neurons = pd.DataFrame(
        {
            "neuron": range(len(shares)),
            "frequency": (shares.argmax(1) + 1).tolist(),
            "share": shares.max(1).values.tolist(),
            "key": [k + 1 in problem.key for k in shares.argmax(1).tolist()],
            "control": control.max(1).values.tolist(),
        }
    )
    grid = acts.mlp.to(torch.float64).reshape(p, p, -1)
    power = transform_pairs(grid - grid.mean((0, 1)), basis.to(device)).pow(2).mean(2).sqrt()
    norms = component_norms(acts.W_logit.T, basis.to(device)).tolist()
    return {
        "neurons": neurons,
        "neuron_shares": wide(shares, [f"k{k + 1}" for k in range(p // 2)]),
        "neuron_fourier": pd.concat([pd.DataFrame({"component": names}), wide(power)], axis=1),
        "logit_weights_fourier": pd.DataFrame({"component": names, "norm": norms}),
    }
