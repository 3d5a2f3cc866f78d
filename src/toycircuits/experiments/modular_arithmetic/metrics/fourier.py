"""The Fourier basis over the numbers mod p, and the frequencies that stand out in a matrix.

Notation: p is the modulus, odd, and w_k = 2 pi k / p for k = 1 .. (p - 1) / 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def fourier_basis(p: int) -> tuple[Float[Tensor, "p p"], list[str]]:
    """Orthonormal rows 1, sin 1, cos 1, sin 2, cos 2, ... over Z_p, and their names; p is odd.

    >>> basis, names = fourier_basis(5)
    >>> names
    ['const', 'sin 1', 'cos 1', 'sin 2', 'cos 2']
    >>> torch.allclose(basis @ basis.T, torch.eye(5, dtype=basis.dtype))
    True
    """
    x = torch.arange(p, dtype=torch.float64)
    rows, names = [torch.ones(p, dtype=torch.float64)], ["const"]
    for k in range(1, p // 2 + 1):
        angle = 2 * torch.pi * k * x / p
        rows += [angle.sin(), angle.cos()]
        names += [f"sin {k}", f"cos {k}"]
    basis = torch.stack(rows)
    return basis / basis.norm(dim=1, keepdim=True), names


def component_norms(
    matrix: Float[Tensor, "p d"], basis: Float[Tensor, "p p"]
) -> Float[Tensor, " p"]:
    """Norm of each row of the Fourier-transformed matrix."""
    return (basis @ matrix.to(basis.dtype)).norm(dim=1)


def frequency_norms(
    matrix: Float[Tensor, "p d"], basis: Float[Tensor, "p p"]
) -> Float[Tensor, " frequency"]:
    """Norm of the sine and cosine rows of each frequency k >= 1 in the transformed matrix."""
    energy = (basis @ matrix.to(basis.dtype)).pow(2).sum(1)
    return (energy[1::2] + energy[2::2]).sqrt()


def find_key_frequencies(
    norms: Float[Tensor, " frequency"], median_ratio: float, max_ratio: float
) -> list[int]:
    """Frequencies whose norm stands out: the key frequencies.

    In a matrix of noise no norm is far from the median, so no frequency is key.

    Args:
        median_ratio: a key frequency has at least so many times the median norm,
        max_ratio: and at least this share of the largest norm.
    """
    floor = torch.maximum(median_ratio * norms.median(), max_ratio * norms.max())
    return (torch.nonzero((norms >= floor) & (norms > 0)).flatten() + 1).tolist()


def transform_pairs(
    grid: Float[Tensor, "p p n"], basis: Float[Tensor, "p p"]
) -> Float[Tensor, "p p n"]:
    """The two-dimensional Fourier transform of n functions of (a, b)."""
    return torch.einsum("yb,xbn->xyn", basis, torch.einsum("xa,abn->xbn", basis, grid))
