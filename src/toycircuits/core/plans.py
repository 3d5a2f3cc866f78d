"""Plans: what the fast form (fast_form.py) computes for one choice of positions to read.

rows.py explains rows and their kinds: constants, tables and the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from toycircuits.core.rows import KINDS, Allowed, Kind, kind_of, rows_needed, sources


@dataclass(frozen=True)
class Group:
    """Queries of a layer whose results are rows of one kind.

    Attributes:
        kind: kind of the results.
        column: for the kind "table", the position whose token chooses the entry; otherwise None.
        single: positions of queries with one key.
        single_keys: the key of each of them.
        queries: positions of queries with several keys.
        keys: positions that one of `queries` may attend to.
        forbidden: True where one of `queries` may not attend to one of `keys`; None if nowhere.
    """

    kind: Kind
    column: int | None
    single: tuple[int, ...]
    single_keys: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    forbidden: Bool[Tensor, "query key"] | None

    @property
    def members(self) -> tuple[int, ...]:
        """All queries of the group, in the order of their results."""
        return self.single + self.queries


@dataclass(frozen=True)
class LayerPlan:
    """What a layer computes.

    Attributes:
        queries: positions whose residual stream is needed after the layer.
        keys: positions that one of the queries may attend to.
        blind: the queries that may attend to no key.
        groups: all other queries.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    blind: tuple[int, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Plan:
    """What a forward pass computes, for one choice of positions to read.

    Attributes:
        inputs: positions whose embedding is needed, by kind of their rows.
        fixed: the tokens of those inputs that are constants.
        layers: one plan for each layer.
        read: the positions read, in ascending order.
    """

    inputs: dict[Kind, tuple[int, ...]]
    fixed: Int[Tensor, " pos"]
    layers: tuple[LayerPlan, ...]
    read: tuple[int, ...]


@torch.inference_mode(False)  # gradients may flow past the masks in later calls
def make_plan(
    allowed: Sequence[Allowed],
    fixed_tokens: Sequence[int | None],
    read: Sequence[int],
    tables: bool,
    device: torch.device,
) -> Plan:
    """Work out what to compute.

    Args:
        allowed: the mask of each layer.
        fixed_tokens: for each position the token that it holds in all sequences, or None.
        read: positions whose logits are wanted.
        tables: whether the batch is so large that tables save time.

    Raises:
        ValueError: a position to read does not exist.
    """
    needed = rows_needed(allowed, read)
    levels = sources(allowed, [token is not None for token in fixed_tokens])
    layers = []
    for mask, rows, before, after in zip(allowed, needed, levels, levels[1:], strict=False):
        order = sorted(rows.inputs, key=lambda p: (KINDS.index(kind_of(before[p], tables)), p))
        groups: dict[tuple[Kind, frozenset[int]], list[int]] = {}
        for query in [query for query in order if query in rows.queries and any(mask[query])]:
            kind = kind_of(after[query], tables)
            depends_on = after[query] if kind == "table" else frozenset()
            groups.setdefault((kind, depends_on), []).append(query)
        made = [_group(mask, order, key, queries, device) for key, queries in groups.items()]
        blind = tuple(query for query in rows.queries if not any(mask[query]))
        layers.append(LayerPlan(rows.queries, rows.keys, blind, tuple(made)))
    by_kind: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
    for position in needed[0].inputs:
        by_kind[kind_of(levels[0][position], tables)].append(position)
    inputs = {kind: tuple(positions) for kind, positions in by_kind.items()}
    tokens = [fixed_tokens[position] for position in inputs["constant"]]
    fixed = torch.tensor(tokens, dtype=torch.int64, device=device)
    return Plan(inputs, fixed, tuple(layers), tuple(sorted(set(read))))


def _group(
    mask: Allowed,
    order: Sequence[int],
    result: tuple[Kind, frozenset[int]],
    members: Sequence[int],
    device: torch.device,
) -> Group:
    """The group of the queries `members`.

    Args:
        order: the positions that enter the layer, in the order of their rows in memory.
        result: the kind of the results, and for a table the position that they depend on.
    """
    kind, columns = result
    keys_of = {query: [key for key in order if mask[query][key]] for query in members}
    one = [query for key in order for query in members if keys_of[query] == [key]]
    several = [query for query in members if len(keys_of[query]) > 1]
    keys = [key for key in order if any(key in keys_of[query] for query in several)]
    forbidden = [[not mask[query][key] for key in keys] for query in several]
    return Group(
        kind=kind,
        column=min(columns, default=None),
        single=tuple(one),
        single_keys=tuple(keys_of[query][0] for query in one),
        queries=tuple(several),
        keys=tuple(keys),
        forbidden=torch.tensor(forbidden, dtype=torch.bool, device=device)
        if any(map(any, forbidden))
        else None,
    )
