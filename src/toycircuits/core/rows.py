"""Which rows a forward pass computes, and how often each of them.

A *row* is the vector of one position of one sequence. Two things save rows.

Only rows that the logits read depend on are computed: `rows_needed` walks back over the layers to
find them.

And a row that is the same in several sequences is computed once. The embedding depends on the token
of its own position, and attention adds the tokens that its keys depend on. A row that depends on no
token but fixed ones is a *constant*: one row serves all sequences. A row that depends on the token
of one position is an entry of a *table*, which has one row for each token. All other rows belong to
the *batch*.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

Allowed: TypeAlias = Sequence[Sequence[bool]]  # [query, key]; True where a query may attend
Index: TypeAlias = slice | list[int]  # of positions; a slice where they are adjacent
Kind: TypeAlias = Literal["constant", "table", "batch"]
KINDS: tuple[Kind, ...] = ("constant", "table", "batch")


@dataclass(frozen=True)
class LayerRows:
    """Positions that one layer touches.

    Attributes:
        inputs: positions whose residual stream enters the layer.
        queries: positions whose residual stream leaves it.
        keys: positions that the queries may attend to.
    """

    inputs: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]


def rows_needed(allowed: Sequence[Allowed], read: Sequence[int]) -> tuple[LayerRows, ...]:
    """Walk back from the positions read to the rows that each layer has to compute.

    Args:
        allowed: the mask of each layer.

    Raises:
        ValueError: a position to read does not exist.

    >>> causal = [[True, False, False], [True, True, False], [True, True, True]]
    >>> rows_needed([causal], [2])
    (LayerRows(inputs=(0, 1, 2), queries=(2,), keys=(0, 1, 2)),)
    """
    layers: list[LayerRows] = []
    n_pos = len(allowed[-1])
    queries = tuple(sorted(set(read)))
    if not queries or queries[0] < 0 or queries[-1] >= n_pos:
        raise ValueError(f"read: found {list(read)}; allowed are positions 0 to {n_pos - 1}")
    for mask in reversed(allowed):
        keys = tuple(key for key in range(n_pos) if any(mask[query][key] for query in queries))
        inputs = tuple(sorted({*queries, *keys}))
        layers.append(LayerRows(inputs, queries, keys))
        queries = inputs
    return tuple(reversed(layers))


def sources(allowed: Sequence[Allowed], fixed: Sequence[bool]) -> list[list[frozenset[int]]]:
    """The positions whose tokens each row depends on, before the first layer and after each layer.

    Args:
        fixed: whether a position holds the same token in all sequences.

    >>> mask = [[True, False, False], [True, False, False], [True, True, False]]
    >>> [[sorted(row) for row in level] for level in sources([mask], [False, False, True])]
    [[[0], [1], []], [[0], [0, 1], [0, 1]]]
    """
    now = [frozenset[int]() if known else frozenset({pos}) for pos, known in enumerate(fixed)]
    levels = [now]
    for mask in allowed:
        keys = [
            [now[key] for key, may in enumerate(mask[query]) if may] for query in range(len(now))
        ]
        now = [row.union(*seen) for row, seen in zip(now, keys, strict=True)]
        levels.append(now)
    return levels


def kind_of(depends_on: frozenset[int], tables: bool) -> Kind:
    """The kind of a row that depends on the tokens of these positions.

    Args:
        tables: whether the batch is so large that a table saves time.
    """
    if not depends_on:
        return "constant"
    return "table" if tables and len(depends_on) == 1 else "batch"


@dataclass(frozen=True)
class Part:
    """Rows of one kind.

    Attributes:
        values: [n, pos, ...], where n is 1 for constants, d_vocab for a table, and else the batch.
        positions: which positions these are.
        columns: of a table; for each of `positions`, the position whose token is the entry.
    """

    kind: Kind
    values: Tensor
    positions: tuple[int, ...]
    columns: tuple[int, ...] = ()

    def take(self, positions: Sequence[int]) -> "Part":
        """The rows of those of `positions` that are here, in the order of `positions`."""
        taken = tuple(position for position in positions if position in self.positions)
        if taken == self.positions:
            return self
        places = [self.positions.index(position) for position in taken]
        columns = tuple(self.columns[place] for place in places) if self.columns else ()
        return Part(self.kind, self.values[:, as_slice(places)], taken, columns)

    def at(self, kind: Kind, tokens: Int[Tensor, "batch all_pos"]) -> Tensor:
        """The rows [n, pos, ...] for sums with rows of a `kind` that is no more constant.

        Constants keep n = 1: sums broadcast them. A table is the batch of its entries.
        """
        if self.kind != "table" or kind == "table":
            return self.values
        # `embedding` and not indexing, because its backward pass is several times as fast.
        rows = F.embedding(self.entries(tokens), self.values.flatten(0, 1).flatten(1))
        return rows.unflatten(-1, self.values.shape[2:])

    def entries(self, tokens: Int[Tensor, "batch all_pos"]) -> Int[Tensor, "batch pos"]:
        """Which entry each row of the batch is, in the table flattened over its first two axes."""
        n = len(self.positions)
        offsets = torch.arange(n, dtype=torch.int64, device=tokens.device)
        return tokens[:, as_slice(self.columns)] * n + offsets


@dataclass(frozen=True)
class Rows:
    """The rows of some positions, as at most one part of each kind."""

    parts: tuple[Part, ...]

    @staticmethod
    def merged(parts: Sequence[Part]) -> "Rows":
        """The rows of all `parts`, of which several may be of one kind."""
        merged = []
        for kind in KINDS:
            same = [part for part in parts if part.kind == kind]
            if same:
                positions = tuple(position for part in same for position in part.positions)
                columns = tuple(column for part in same for column in part.columns)
                values = [part.values for part in same]
                joined = values[0] if len(values) == 1 else torch.cat(values, 1)
                merged.append(Part(kind, joined, positions, columns))
        return Rows(tuple(merged))

    @property
    def count(self) -> int:
        """Number of rows that are computed."""
        return sum(len(part.values) * len(part.positions) for part in self.parts)

    def take(self, positions: Sequence[int]) -> "Rows":
        """The rows of those of `positions` that are here."""
        parts = (part.take(positions) for part in self.parts)
        return Rows(tuple(part for part in parts if part.positions))

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        """`function` of each row, called once for all of them.

        Args:
            function: of a matrix [row, d]; it must treat rows one by one.
        """
        shapes = [part.values.shape[:2] for part in self.parts]
        flat = [part.values.flatten(0, 1) for part in self.parts]
        if len(flat) == 1:
            return self.replaced([function(flat[0]).unflatten(0, shapes[0])])
        split = function(torch.cat(flat)).split([n * pos for n, pos in shapes])
        return self.replaced(
            [x.unflatten(0, shape) for x, shape in zip(split, shapes, strict=True)]
        )

    def replaced(self, values: Sequence[Tensor]) -> "Rows":
        """The same positions with other `values`, one tensor [n, pos, ...] for each part."""
        pairs = zip(self.parts, values, strict=True)
        return Rows(tuple(Part(part.kind, x, part.positions, part.columns) for part, x in pairs))


def side_by_side(pieces: Sequence[Tensor], n: int, axis: int = 1) -> Tensor:
    """Tensors along `axis`, after those with one row for all sequences are repeated `n` times."""
    if len(pieces) == 1 and len(pieces[0]) == n:
        return pieces[0]
    return torch.cat([piece.expand(n, *piece.shape[1:]) for piece in pieces], axis)


def as_slice(places: Sequence[int]) -> Index:
    """`places` as an index: a slice where they are adjacent, which makes a view.

    >>> as_slice([1, 2]), as_slice([1, 3]), as_slice([])
    (slice(1, 3, None), [1, 3], slice(0, 0, None))
    """
    first = places[0] if places else 0
    adjacent = list(places) == list(range(first, first + len(places)))
    return slice(first, first + len(places)) if adjacent else list(places)
