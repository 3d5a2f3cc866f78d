"""The embedding: its singular values and its Fourier transform, beside a Gaussian control."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic.metrics.activations import Problem
from toycircuits.experiments.modular_arithmetic.metrics.fourier import fourier_basis
from toycircuits.experiments.modular_arithmetic.metrics.wide import wide

N_VECTORS = 8  # left singular vectors that the table holds


def number_embedding(model: Transformer) -> Float[Tensor, "p d_model"]:
    """W_E without the row of the "=" token."""
    return model.embed.W_E.detach()[:-1]


def embedding_tables(
    model: Transformer, problem: Problem, noise: torch.Generator
) -> dict[str, pd.DataFrame]:
    """Singular values and vectors of W_E, and W_E in the Fourier basis, by name.

    Args:
        noise: draws the control, a Gaussian matrix of the norm of W_E.
    """
    W_E = number_embedding(model).to(torch.float64)
    control = torch.randn(W_E.shape, generator=noise, dtype=torch.float64).to(W_E.device)
    control *= W_E.norm() / control.norm()
    basis, names = fourier_basis(problem.p)
    basis = basis.to(W_E.device)
    left, singular, _ = torch.linalg.svd(W_E, full_matrices=False)
    projection = basis @ W_E
    components = pd.DataFrame({"component": names})
    svd = {"singular_value": singular.tolist(), "control": torch.linalg.svdvals(control).tolist()}
    norms = {"norm": projection.norm(dim=1).tolist()}
    norms["control"] = (basis @ control).norm(dim=1).tolist()
    return {
        "embedding_svd": pd.DataFrame({"index": range(len(singular)), **svd}),
        "embedding_vectors": wide(left[:, :N_VECTORS]),
        "embedding_fourier": components.assign(**norms),
        "embedding_projection": pd.concat([components, wide(projection)], axis=1),
        "embedding_gram": _key_rows_gram(projection, names, problem.key),
        "fourier_basis": pd.concat([components, wide(basis)], axis=1),
    }


def _key_rows_gram(
    projection: Float[Tensor, "p d_model"], names: list[str], key: list[int]
) -> pd.DataFrame:
    """Cosine similarities between the rows of the key frequencies in the transformed W_E."""
    key_rows = [row for k in key for row in (2 * k - 1, 2 * k)]
    unit = projection[key_rows] / projection[key_rows].norm(dim=1, keepdim=True)
    key_names = [names[row] for row in key_rows]
    gram = wide(unit @ unit.T, key_names)
    gram.insert(0, "component", key_names)
    return gram
