"""Predictions of a stack for many numbers of examples, faster than `InContextAttention.forward`.

A token sees only earlier ones. The rows of a layer are taken in blocks, and of each block only the
keys are computed that its last row sees: half of all. A block of a few sequences fits in the
processor's cache.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.experiments.linear_regression.model import Attention, InContextAttention

ROWS = 32  # in a block
SEQUENCES = 16  # computed at once


def attend(
    layer: Attention,
    rows: Float[Tensor, "batch row d_model"],
    keys: Float[Tensor, "batch key d_model"],
    n_seen: Sequence[int],
) -> Float[Tensor, "batch row d_model"]:
    """What all heads of `layer` write for each row.

    Args:
        n_seen: for each row, how many keys it sees, from the first on; ascending.
    """
    batch = len(rows)
    mapped = torch.einsum("brd,hdk->bhrk", rows, layer.qk())
    ov = layer.ov().flatten(0, 1)  # [head_d, d_model]
    blocks = [rows[:, :0]]
    for start in range(0, len(n_seen), ROWS):
        limits = torch.tensor(n_seen[start : start + ROWS], device=keys.device)
        seen = keys[:, : int(limits[-1])]
        queries = mapped[:, :, start : start + ROWS]
        all_see = int(limits[0])
        hidden = torch.arange(all_see, seen.shape[1], device=keys.device) >= limits.unsqueeze(1)
        scores = queries.flatten(1, 2) @ seen.transpose(1, 2)  # [batch, head_row, key]
        scores = scores.view(batch, layer.n_heads, len(limits), -1)
        scores[..., all_see:].masked_fill_(hidden, -torch.inf)
        pattern = scores.softmax(-1)
        mixed = (pattern.flatten(1, 2) @ seen).view(batch, layer.n_heads, len(limits), -1)
        blocks.append(mixed.transpose(1, 2).flatten(2) @ ov)
    return torch.cat(blocks, 1)


@torch.no_grad()
def predictions(
    model: InContextAttention,
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch length"]:
    """The predictions of a stack from the first `lengths` examples each; `lengths` ascend.

    Examples beyond the last length are not read.
    """
    z = z[:, : lengths[-1]]
    pairs = zip(z.split(SEQUENCES), z_q.split(SEQUENCES), strict=True)
    return torch.cat([_of_few(model, examples, query, lengths) for examples, query in pairs])


def _of_few(
    model: InContextAttention, z: Tensor, z_q: Tensor, lengths: Sequence[int]
) -> Float[Tensor, "batch length"]:
    """`predictions` of so few sequences that what is computed stays in the cache."""
    assert model.settings.stack is not None
    assert model.W_read is not None
    residual = model.settings.stack.residual
    query = z_q.unsqueeze(1).expand(-1, len(lengths), -1)
    for number, layer in enumerate(model.layers):
        of_query = attend(layer, query, z, lengths)
        query = query + of_query if residual else of_query
        if number < len(model.layers) - 1:
            out = torch.zeros_like(z)  # the first token sees nothing
            out[:, 1:] = attend(layer, z[:, 1:], z, range(1, z.shape[1]))
            z = z + out if residual else out
    return (query @ model.W_read).squeeze(2)
