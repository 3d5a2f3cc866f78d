"""Mirrored attention: does each output attend to the symbol that it needs?

Controls: other diagonals of the pattern, and attention that is the same to all keys.
"""

from collections.abc import Iterable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.experiments.reverse_increment.metrics.activations import Activations


def mirror_weights(
    pattern: Float[Tensor, "string head query key"], shift: int
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """Attention of each output to the symbol that it needs.

    Output i of n needs key n - i: the anti-diagonal of the pattern. A `shift` takes the diagonal
    that many keys later, as far as it lies within the string.

    Returns:
        mean weight there, and share of the queries whose largest weight over all keys is there.

    >>> to_bos_x0_x1_y0 = [[0.0, 0.1, 0.9, 0.0], [0.0, 0.7, 0.1, 0.2]]
    >>> pattern = torch.tensor([[to_bos_x0_x1_y0]])
    >>> mirror_weights(pattern, 0)
    (tensor([0.8000]), tensor([1.]))
    >>> mirror_weights(pattern, 1)
    (tensor([0.1000]), tensor([0.]))
    """
    n = pattern.shape[2]
    queries = torch.arange(n, device=pattern.device)
    keys = n - queries + shift
    inside = (keys >= 1) & (keys <= n)
    queries, keys = queries[inside], keys[inside]
    weight = pattern[:, :, queries, keys].mean((0, 2))
    return weight, (pattern.argmax(-1)[:, :, queries] == keys).to(pattern).mean((0, 2))


def mirror_table(acts: Activations, shifts: Iterable[int]) -> pd.DataFrame:
    """`mirror_weights` of each layer and head at each shift, one row each.

    Column `uniform` is the weight under even attention to all keys that a query may see. It is
    also the share to expect if the largest weight stands on a random one of these keys.
    """
    rows: list[dict[str, float]] = []
    patterns = [x.double() for name, x in acts.items() if "pattern" in name]
    even = even_attention(*patterns[0].shape[2:])
    for shift in shifts:
        uniform = mirror_weights(even, shift)[0].item()
        for layer, pattern in enumerate(patterns):
            by_head = zip(*mirror_weights(pattern, shift), strict=True)
            for head, (weight, share) in enumerate(by_head):
                cell = {"layer": layer, "head": head, "shift": shift, "weight": weight.item()}
                rows.append({**cell, "argmax_share": share.item(), "uniform": uniform})
    return pd.DataFrame(rows)


def even_attention(n_queries: int, n_keys: int) -> Float[Tensor, "1 1 query key"]:
    """The causal pattern in which the last `n_queries` positions attend evenly to what they see.

    >>> even_attention(2, 3)[0, 0].tolist()[0]
    [0.5, 0.5, 0.0]
    """
    seen = torch.arange(n_keys) <= torch.arange(n_keys - n_queries, n_keys).unsqueeze(1)
    return (seen / seen.sum(1, keepdim=True)).double()[None, None]
