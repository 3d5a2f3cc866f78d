"""The products of attention: queries with keys, and patterns with values.

Both are matrix products. Tiny ones are written as sums of products, which are faster then.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from toycircuits.core.rows import Rows, TokenTable, gather

NARROW = 16  # rows with fewer numbers are multiplied faster as sums
FEW = 256  # so are products of at most so many numbers
MANY = 8192  # sums of more numbers would fill the memory
PAIRS_PER_SEQUENCE = 4  # up to so many pairs for each sequence, a table of all pairs saves time


def attention_scores(
    q: Rows, k: Rows, mask_bias: Float[Tensor, "query key"] | None
) -> Float[Tensor, "batch head query key"]:
    """Products of all queries with all keys, -inf where a query may not attend to a key.

    Args:
        q, k: rows [head, d] of the queries and keys.
    """
    if isinstance(q, TokenTable) and isinstance(k, TokenTable):
        scores = _table_scores(q, k)
    else:
        scores = dot_products(gather(q).transpose(1, 2), gather(k).transpose(1, 2))
    return scores if mask_bias is None else scores + mask_bias


def _table_scores(q: TokenTable, k: TokenTable) -> Float[Tensor, "batch head query key"]:
    """Products of queries and keys, each pair of different rows once if there are few pairs."""
    if len(q.values) * len(k.values) > PAIRS_PER_SEQUENCE * len(q.tokens):
        return dot_products(q.gather().transpose(1, 2), k.gather().transpose(1, 2))
    products = q.values.flatten(0, 1).transpose(0, 1) @ k.values.flatten(0, 1).permute(1, 2, 0)
    pairs = q.entries().unsqueeze(2) * products.shape[-1] + k.entries().unsqueeze(1)
    return F.embedding(pairs, products.flatten(1).T).permute(0, 3, 1, 2)


def dot_products(
    q: Float[Tensor, "batch head query d"], k: Float[Tensor, "batch head key d"]
) -> Float[Tensor, "batch head query key"]:
    """Products of all queries with all keys."""
    if _as_sums(q.shape[3], q.shape[2] * k.shape[2]):
        return (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1)
    return q @ k.transpose(2, 3)


def weighted_sums(
    pattern: Float[Tensor, "batch head query key"], v: Float[Tensor, "batch head key d"]
) -> Float[Tensor, "batch head query d"]:
    """Sums of the values, weighted by the attention pattern."""
    if _as_sums(v.shape[3], pattern.shape[2] * pattern.shape[3]):
        return (pattern.unsqueeze(-1) * v.unsqueeze(2)).sum(3)
    return pattern @ v


def _as_sums(d: int, n_pairs: int) -> bool:
    """Whether matrix products of so many pairs of rows of d numbers are better written as sums.

    Calling thousands of tiny matrix products costs more than computing them. And the compiler fuses
    sums with the code around them, but not matrix products.
    """
    small = d < NARROW or d * n_pairs <= FEW or torch.compiler.is_compiling()
    return small and d * n_pairs <= MANY
