"""The products of attention: queries with keys, and patterns with values.

Both are batched matrix products. Small ones are computed by elementwise products and sums, which
are faster for them. If all sequences share a factor, its batch axis has size 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toycircuits.core.rows import Part

NARROW = 16  # with fewer numbers in a row, sums are faster
FEW = 256  # with at most this many elementwise products per head and sequence, sums are faster
MANY = 8192  # with more elementwise products per head and sequence, sums need too much memory
PAIRS_PER_SEQUENCE = 4  # with at most this many pairs per sequence, a table of all pairs is faster


def table_products(
    q: Part, k: Part, tokens: Int[Tensor, "batch all_pos"]
) -> Float[Tensor, "batch head query key"]:
    """Products of queries and keys that are both in tables (rows.py).

    If there are few pairs of a query's entry and a key's entry, each pair is computed once.

    Args:
        q, k: tables with values [d_vocab, pos, head, d].
    """
    n_pairs = q.values.shape[:2].numel() * k.values.shape[:2].numel()
    if n_pairs > PAIRS_PER_SEQUENCE * len(tokens):
        rows = (part.at("batch", tokens).transpose(1, 2) for part in (q, k))
        return dot_products(*rows)
    products = q.values.flatten(0, 1).transpose(0, 1) @ k.values.flatten(0, 1).permute(1, 2, 0)
    pairs = q.entries(tokens).unsqueeze(2) * products.shape[-1] + k.entries(tokens).unsqueeze(1)
    return F.embedding(pairs, products.flatten(1).T).permute(0, 3, 1, 2)


def dot_products(
    q: Float[Tensor, "batch_q head query d"], k: Float[Tensor, "batch_k head key d"]
) -> Float[Tensor, "batch head query key"]:
    """Products of all queries with all keys; the batch of one side may be 1."""
    if _as_sums(q.shape[3], q.shape[2] * k.shape[2]):
        return (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1)
    if len(q) == len(k):
        return q @ k.transpose(2, 3)
    if len(q) == 1:
        return torch.einsum("hqd,bhkd->bhqk", q[0], k)
    return torch.einsum("bhqd,hkd->bhqk", q, k[0])


def weighted_sums(
    pattern: Float[Tensor, "batch head query key"], v: Float[Tensor, "batch_v head key d"]
) -> Float[Tensor, "batch head query d"]:
    """Sums of the values, weighted by the attention pattern; the batch of values may be 1."""
    if _as_sums(v.shape[3], pattern.shape[2] * pattern.shape[3]):
        return (pattern.unsqueeze(-1) * v.unsqueeze(2)).sum(3)
    if len(v) == len(pattern):
        return pattern @ v
    return torch.einsum("bhqk,hkd->bhqd", pattern, v[0])


def _as_sums(d: int, n_pairs: int) -> bool:
    """Whether `n_pairs` products of two rows of `d` numbers are faster as sums.

    To call a small matrix product takes longer than to compute it. And `torch.compile` fuses sums
    with the operations around them, but not matrix products.
    """
    small = d < NARROW or d * n_pairs <= FEW or torch.compiler.is_compiling()
    return small and d * n_pairs <= MANY
