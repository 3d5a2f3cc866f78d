"""Which rows a forward pass computes.

A *row* is the vector of one position of one sequence. Two things save rows. Only rows that the
logits read depend on are computed: `rows_needed` walks back over the layers to find them. And
below the first attention a row depends on its token and position alone, so that a large batch has
few different rows: a `TokenTable` holds each of them once.

The residual stream is therefore a tensor [batch, pos, d_model] or a `TokenTable`. `apply`, `take`
and `gather` work on both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ROWS_PER_ENTRY = 4  # a table saves time if the batch has more sequences for each token
Index: TypeAlias = slice | list[int]  # of positions; a slice where they are adjacent


@dataclass(frozen=True)
class LayerRows:
    """Positions that one layer touches.

    Attributes:
        inputs: positions whose residual stream enters the layer.
        queries: positions whose residual stream leaves it.
        keys: positions that the queries may attend to.
        query_index, key_index: places of the queries, and of the keys, among the inputs.
    """

    inputs: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    query_index: Index = field(init=False, compare=False, repr=False)
    key_index: Index = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "query_index", index_of(self.queries, self.inputs))
        object.__setattr__(self, "key_index", index_of(self.keys, self.inputs))

    def mask_bias(self, allowed: list[list[bool]]) -> Float[Tensor, "query key"] | None:
        """What to add to the scores: -inf where a query may not attend; None if nowhere."""
        rows = [[0.0 if allowed[q][k] else -math.inf for k in self.keys] for q in self.queries]
        return torch.tensor(rows) if any(map(any, rows)) else None


class LayerPlan(NamedTuple):
    """What one layer computes: the rows, and the mask on the model's device."""

    rows: LayerRows
    mask_bias: Float[Tensor, "query key"] | None


def index_of(wanted: Sequence[int], positions: Sequence[int]) -> Index:
    """Places of the `wanted` positions among `positions`.

    >>> index_of((3, 4), (1, 3, 4)), index_of((1, 4), (1, 3, 4))
    (slice(1, 3, None), [0, 2])
    """
    index = [positions.index(position) for position in wanted]
    adjacent = index == list(range(index[0], index[-1] + 1))
    return slice(index[0], index[-1] + 1) if adjacent else index


def rows_needed(
    allowed: list[list[bool]], read: Sequence[int], n_layers: int
) -> tuple[LayerRows, ...]:
    """Walk back from the positions read to the rows that each layer has to compute.

    Raises:
        ValueError: a position to read does not exist, or a query may attend to no key.

    >>> allowed = [[True, False, False], [True, True, False], [True, True, True]]
    >>> rows_needed(allowed, [2], n_layers=1)
    (LayerRows(inputs=(0, 1, 2), queries=(2,), keys=(0, 1, 2)),)
    """
    layers: list[LayerRows] = []
    queries = tuple(sorted(set(read)))
    if not queries or queries[0] < 0 or queries[-1] >= len(allowed):
        raise ValueError(f"read: found {list(read)}; allowed are positions 0 to {len(allowed) - 1}")
    for _ in range(n_layers):
        _check_queries_see_keys(allowed, queries)
        keys = tuple(key for key in range(len(allowed)) if any(allowed[q][key] for q in queries))
        inputs = tuple(sorted({*queries, *keys}))
        layers.append(LayerRows(inputs, queries, keys))
        queries = inputs
    return tuple(reversed(layers))


def all_rows(allowed: list[list[bool]], n_layers: int) -> tuple[LayerRows, ...]:
    """Every row in every layer, as a hook expects them.

    Raises:
        ValueError: a query may attend to no key.
    """
    everywhere = tuple(range(len(allowed)))
    _check_queries_see_keys(allowed, everywhere)
    return (LayerRows(everywhere, everywhere, everywhere),) * n_layers


def _check_queries_see_keys(allowed: list[list[bool]], queries: Sequence[int]) -> None:
    """Raise a `ValueError` if one of the queries may attend to no key."""
    for query in queries:
        if not any(allowed[query]):
            raise ValueError(
                f"found {len(allowed)} positions; position {query} may attend to none of them"
            )


@dataclass(frozen=True)
class TokenTable:
    """Rows that depend on their token and position alone, each such pair once.

    Attributes:
        values: [d_vocab, pos, ...], the row of each token at each of the positions.
        positions: which positions these are.
        tokens: the tokens of the batch, at all positions of the sequence.
    """

    values: Float[Tensor, "d_vocab pos *d"]
    positions: tuple[int, ...]
    tokens: Int[Tensor, "batch all_pos"]

    def apply(self, function: Callable[[Tensor], Tensor]) -> "TokenTable":
        """The table of `function` of each row; it must treat rows one by one."""
        return TokenTable(function(self.values), self.positions, self.tokens)

    def take(self, index: Index) -> "TokenTable":
        """The rows at some of the positions."""
        places = index if isinstance(index, list) else range(*index.indices(len(self.positions)))
        positions = tuple(self.positions[place] for place in places)
        return TokenTable(_take(self.values, index), positions, self.tokens)

    def entries(self) -> Int[Tensor, "batch pos"]:
        """Which entry each row of the batch is, in the table flattened over its first two axes."""
        at = index_of(self.positions, range(self.tokens.shape[1]))
        offsets = torch.arange(len(self.positions), device=self.tokens.device)
        return self.tokens[:, at] * len(self.positions) + offsets

    def gather(self) -> Float[Tensor, "batch pos *d"]:
        """The rows of the batch."""
        # `embedding` and not indexing, because its backward pass is several times as fast.
        rows = F.embedding(self.entries(), self.values.flatten(0, 1).flatten(1))
        return rows.unflatten(-1, self.values.shape[2:])


Rows: TypeAlias = Tensor | TokenTable  # of a batch: each of them, or each different one once


def apply(function: Callable[[Tensor], Tensor], rows: Rows) -> Rows:
    """`function` of each row; it must treat rows one by one."""
    return rows.apply(function) if isinstance(rows, TokenTable) else function(rows)


def take(rows: Rows, index: Index) -> Rows:
    """The rows at some of their positions."""
    return rows.take(index) if isinstance(rows, TokenTable) else _take(rows, index)


def gather(rows: Rows) -> Float[Tensor, "batch pos *d"]:
    """The rows of the batch, one for each sequence and position."""
    return rows.gather() if isinstance(rows, TokenTable) else rows


def _take(x: Tensor, index: Index) -> Tensor:
    everything = isinstance(index, slice) and index == slice(0, x.shape[1])
    return x if everything else x[:, index]
