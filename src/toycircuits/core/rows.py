"""Rows: which ones a forward pass computes, and which of them it computes once for many sequences.

A *row* is the vector of one position of one sequence. The fast form saves rows in two ways.

First, it computes only rows that the requested logits depend on. `rows_needed` finds them: it walks
back over the layers.

Second, it computes a row only once if several sequences share it. A row at first depends on the
token of its own position. After an attention layer it also depends on what its keys depend on. If
all these tokens are fixed (the same in every sequence), the row is a *constant*: one row for all
sequences. If exactly one of them varies, and the batch is large, the row is an entry of a *table*,
which has one row for each token. All other rows belong to the *batch*: one row for each sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

Allowed: TypeAlias = Sequence[Sequence[bool]]  # [query, key]; True where a query may attend
Index: TypeAlias = slice | list[int]  # positions as an index; a slice if they are adjacent
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
    """The rows that each layer has to compute, from the first layer to the last.

    Args:
        allowed: the mask of each layer.
        read: positions whose logits are requested.

    Raises:
        ValueError: there is no position to read, or one of them does not exist.

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
        allowed: the mask of each layer.
        fixed: for each position, whether it holds the same token in all sequences. Fixed tokens do
            not count as something that a row depends on.

    >>> mask = [[True, False, False], [True, False, False], [True, True, False]]
    >>> [[sorted(row) for row in level] for level in sources([mask], [False, False, True])]
    [[[0], [1], []], [[0], [0, 1], [0, 1]]]
    """
    now = [frozenset() if known else frozenset({pos}) for pos, known in enumerate(fixed)]
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
        kind: "constant", "table" or "batch"; see the module's docstring.
        values: [n, pos, ...]. n is 1 for constants, d_vocab for a table, otherwise the batch size.
        positions: the position of each row along `pos`.
        columns: only for a table: for each row along `pos`, the position whose token chooses the
            entry.
    """

    kind: Kind
    values: Tensor
    positions: tuple[int, ...]
    columns: tuple[int, ...] = ()

    def take(self, positions: Sequence[int]) -> "Part":
        """The rows at those `positions` that this part has, in the order of `positions`."""
        taken = tuple(position for position in positions if position in self.positions)
        if taken == self.positions:
            return self
        places = [self.positions.index(position) for position in taken]
        columns = tuple(self.columns[place] for place in places) if self.columns else ()
        return Part(self.kind, self.values[:, as_slice(places)], taken, columns)

    def at(self, kind: Kind, tokens: Int[Tensor, "batch all_pos"]) -> Tensor:
        """The rows [n, pos, ...] in a form that can be combined with rows of `kind`.

        Constants stay as they are, with n = 1, because arithmetic broadcasts them. If `kind` is
        "batch", the rows of a table are looked up: each sequence gets its entries.

        Args:
            kind: the kind of these rows or a later one in `KINDS`.
        """
        if self.kind != "table" or kind == "table":
            return self.values
        # `embedding` and not indexing, because its backward pass is several times as fast.
        rows = F.embedding(self.entries(tokens), self.values.flatten(0, 1).flatten(1))
        return rows.unflatten(-1, self.values.shape[2:])

    def entries(self, tokens: Int[Tensor, "batch all_pos"]) -> Int[Tensor, "batch pos"]:
        """For each row of the batch, its index in the table with its first two axes flattened."""
        n = len(self.positions)
        offsets = torch.arange(n, dtype=torch.int64, device=tokens.device)
        return tokens[:, as_slice(self.columns)] * n + offsets


@dataclass(frozen=True)
class Rows:
    """The rows of some positions, as at most one part of each kind."""

    parts: tuple[Part, ...]

    @staticmethod
    def merged(parts: Sequence[Part]) -> "Rows":
        """The rows of all `parts`. Parts of one kind become one part."""
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
        """The rows at those `positions` that are here."""
        parts = (part.take(positions) for part in self.parts)
        return Rows(tuple(part for part in parts if part.positions))

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        """`function` of each row, called once for all of them.

        Args:
            function: takes and returns a matrix [row, d], and treats each row independently.
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
    """Join tensors along `axis`. Those whose first axis has size 1 are repeated `n` times first."""
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
