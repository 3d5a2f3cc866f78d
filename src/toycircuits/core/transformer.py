"""The transformer that all token experiments share, as a `HookedRootModule`.

Pre-norm residual stream, any boolean attention mask, MLP or none, LayerNorm or none, biases or
none, value and output matrices that may be frozen to the identity. Hook names and state-dict keys
are those of TransformerLens's `HookedTransformer` (removed in TransformerLens 4).

Only what is read is computed: `forward(tokens, read=...)` takes the positions whose logits are
wanted, and one walk back over the layers (`rows_needed`) finds the rows each layer has to touch.
Without `read` every row is computed and every hook sees its usual shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from toycircuits.core.config import Settings

# Rows narrower than this, and products of fewer numbers, are multiplied faster as sums of products;
# those of more are not, and would fill the memory.
NARROW, FEW, MANY = 16, 256, 8192
INIT_GAIN = 0.8  # every W_* starts as N(0, (0.8 / sqrt(d_model))^2), TransformerLens's old default
LAYER_NORM_EPS = 1e-5


class TransformerSettings(Settings):
    """Shape of a `Transformer`.

    Attributes:
        d_mlp: width of the MLPs, or None for attention only.
        normalization: "LN" (before attention, MLP and unembedding) or None.
        use_bias: whether biases are trained; otherwise all of them, b_U too, are frozen at zero.
        freeze_W_V, freeze_W_O: freeze the matrix to the identity, so that a head can only copy.
        mask: one string a query position, one character a key position, "1" where the query may
            attend to the key and "." where not.
    """

    n_layers: int = Field(ge=1, le=64)
    n_heads: int = Field(ge=1, le=256)
    d_model: int = Field(ge=1, le=65536)
    d_head: int = Field(ge=1, le=65536)
    d_mlp: int | None = Field(ge=1, le=262144)
    d_vocab: int = Field(ge=1, le=1_000_000)
    d_vocab_out: int = Field(ge=1, le=1_000_000)
    act_fn: Literal["relu", "gelu"] | None
    normalization: Literal["LN"] | None
    use_bias: bool
    freeze_W_V: bool
    freeze_W_O: bool
    mask: tuple[str, ...] = Field(min_length=1, max_length=4096)

    @property
    def n_ctx(self) -> int:
        """Number of positions."""
        return len(self.mask)

    @property
    def allowed(self) -> list[list[bool]]:
        """The mask as booleans, [query, key]."""
        return [[cell == "1" for cell in row] for row in self.mask]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for query, row in enumerate(self.mask):
            if len(row) != self.n_ctx or set(row) - {"1", "."}:
                raise ValueError(
                    f"mask row {query} is {row!r}; allowed are {self.n_ctx} characters 1 or ."
                )
            if "1" not in row:
                raise ValueError(f"mask row {query} is {row!r}; a query must see at least one key")
        if (self.d_mlp is None) != (self.act_fn is None):
            raise ValueError(
                f"d_mlp is {self.d_mlp} and act_fn {self.act_fn}; both or neither are null"
            )
        for name in ("freeze_W_V", "freeze_W_O"):
            if getattr(self, name) and self.d_head != self.d_model:
                raise ValueError(
                    f"{name} needs d_head = d_model, found {self.d_head} and {self.d_model}"
                )
        return self


@dataclass(frozen=True)
class LayerRows:
    """Positions that one layer touches.

    Attributes:
        inputs: positions whose residual stream enters the layer.
        queries: positions whose residual stream leaves it.
        keys: positions that the queries may attend to.
        at_queries, at_keys: index of the queries, and of the keys, among the inputs.
    """

    inputs: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    at_queries: slice | list[int] = field(init=False, compare=False, repr=False)
    at_keys: slice | list[int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "at_queries", _index(self.inputs, self.queries))
        object.__setattr__(self, "at_keys", _index(self.inputs, self.keys))

    def blind(self, allowed: list[list[bool]]) -> Float[Tensor, "query key"] | None:
        """What to add to the scores: -inf where a query may not attend; None if nowhere."""
        rows = [[0.0 if allowed[q][k] else -math.inf for k in self.keys] for q in self.queries]
        return torch.tensor(rows) if any(map(any, rows)) else None


def _index(have: tuple[int, ...], want: tuple[int, ...]) -> slice | list[int]:
    index = [have.index(position) for position in want]
    adjacent = index == list(range(index[0], index[-1] + 1))
    return slice(index[0], index[-1] + 1) if adjacent else index


def _take(x: Float[Tensor, "batch pos d"], index: slice | list[int]) -> Tensor:
    everything = isinstance(index, slice) and index == slice(0, x.shape[1])
    return x if everything else x[:, index]


def rows_needed(
    allowed: list[list[bool]], read: Sequence[int], n_layers: int
) -> tuple[LayerRows, ...]:
    """Walk back from the positions read to the rows that each layer has to compute.

    >>> allowed = [[True, False, False], [True, True, False], [True, True, True]]
    >>> rows_needed(allowed, [2], n_layers=1)
    (LayerRows(inputs=(0, 1, 2), queries=(2,), keys=(0, 1, 2)),)
    """
    layers: list[LayerRows] = []
    queries = tuple(sorted(set(read)))
    if not queries or queries[0] < 0 or queries[-1] >= len(allowed):
        raise ValueError(f"read: found {list(read)}; allowed are positions 0 to {len(allowed) - 1}")
    for _ in range(n_layers):
        _check_sight(allowed, queries)
        keys = tuple(key for key in range(len(allowed)) if any(allowed[q][key] for q in queries))
        inputs = tuple(sorted({*queries, *keys}))
        layers.append(LayerRows(inputs, queries, keys))
        queries = inputs
    return tuple(reversed(layers))


def _check_sight(allowed: list[list[bool]], queries: Sequence[int]) -> None:
    """Raise a `ValueError` if one of the queries may attend to no key."""
    for query in queries:
        if not any(allowed[query]):
            raise ValueError(
                f"found {len(allowed)} positions; position {query} may attend to none of them"
            )


def watched(*hooks: HookPoint) -> bool:
    """Whether anybody looks at, or changes, what flows through one of `hooks`."""
    return any(hook._forward_hooks or hook._backward_hooks for hook in hooks)


def _through(hook: HookPoint, x: Tensor) -> Tensor:
    """`hook(x)`, if watched: calling a module costs more than a tiny tensor's arithmetic."""
    return hook(x) if watched(hook) else x


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

    Thousands of tiny matrix products cost more by being called than by being computed. And the
    compiler makes one loop of sums and what is around them, but leaves matrix products alone.
    """
    small = d < NARROW or d * n_pairs <= FEW or torch.compiler.is_compiling()
    return small and d * n_pairs <= MANY


@dataclass(frozen=True)
class Distinct:
    """Rows that depend on their token and position alone, each such pair computed once.

    So it is below the first attention. A table of them has the shape [d_vocab, pos, ...].

    Attributes:
        tokens: those of the batch.
    """

    tokens: Int[Tensor, "batch pos"]

    def _numbers(self, positions: tuple[int, ...]) -> Int[Tensor, "batch pos"]:
        """Number of each row of the batch in a flattened table of the rows at `positions`."""
        at = _index(tuple(range(self.tokens.shape[1])), positions)
        steps = torch.arange(len(positions), device=self.tokens.device)
        return self.tokens[:, at] * len(positions) + steps

    def spread(self, table: Tensor, positions: tuple[int, ...]) -> Tensor:
        """The rows of the batch at `positions`, from those of the table."""
        # `embedding`, not indexing: its backward pass is the faster by far.
        rows = F.embedding(self._numbers(positions), table.flatten(0, 1).flatten(1))
        return rows.unflatten(-1, table.shape[2:])

    def scores(
        self,
        q: Float[Tensor, "d_vocab query head d"],
        k: Float[Tensor, "d_vocab key head d"],
        at: LayerRows,
    ) -> Float[Tensor, "batch head query key"]:
        """Products of queries and keys: of all distinct ones, if these are not too many."""
        if q.shape[0] * k.shape[0] > 4 * self.tokens.shape[0]:
            q, k = self.spread(q, at.queries), self.spread(k, at.keys)
            return dot_products(q.transpose(1, 2), k.transpose(1, 2))
        products = q.flatten(0, 1).transpose(0, 1) @ k.flatten(0, 1).permute(1, 2, 0)
        n_keys = products.shape[-1]
        numbers = self._numbers(at.queries).unsqueeze(2) * n_keys
        numbers = numbers + self._numbers(at.keys).unsqueeze(1)
        return F.embedding(numbers, products.flatten(1).T).permute(0, 3, 1, 2)


Plan: TypeAlias = list[tuple[LayerRows, Tensor | None]]


class Rows(NamedTuple):
    """The rows that a layer computes, for one batch.

    Attributes:
        at: their positions.
        blind: what to add to the attention scores [query, key], or None for nothing.
        distinct: how rows of a table of distinct ones become those of the batch; None where rows
            are those of the batch already, as in all layers but the first.
    """

    at: LayerRows
    blind: Tensor | None
    distinct: Distinct | None

    def spread(self, x: Tensor, positions: tuple[int, ...]) -> Tensor:
        """The rows of the batch."""
        return x if self.distinct is None else self.distinct.spread(x, positions)

    def pattern_scores(self, q: Tensor, k: Tensor) -> Float[Tensor, "batch head query key"]:
        """Products of queries and keys [batch or d_vocab, pos, head, d], the blind ones -inf."""
        if self.distinct is None:
            scores = dot_products(q.transpose(1, 2), k.transpose(1, 2))
        else:
            scores = self.distinct.scores(q, k, self.at)
        return scores if self.blind is None else scores + self.blind


class LayerNorm(nn.Module):
    """LayerNorm over d_model, with TransformerLens's hooks and parameter names."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if not watched(self.hook_scale, self.hook_normalized):
            return F.layer_norm(x, self.w.shape, self.w, self.b, LAYER_NORM_EPS)
        x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + LAYER_NORM_EPS).sqrt())
        return self.hook_normalized(x / scale * self.w + self.b)


class Embed(nn.Module):
    """Token embedding, W_E [d_vocab, d_model]."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(settings.d_vocab, settings.d_model))


class PosEmbed(nn.Module):
    """Positional embedding, W_pos [n_ctx, d_model]."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(settings.n_ctx, settings.d_model))


class Unembed(nn.Module):
    """Unembedding, W_U [d_model, d_vocab_out] and b_U [d_vocab_out]."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(settings.d_model, settings.d_vocab_out))
        self.b_U = nn.Parameter(torch.zeros(settings.d_vocab_out))
        self.use_bias = settings.use_bias

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Tensor:
        logits = resid @ self.W_U
        return logits + self.b_U if self.use_bias else logits


class Attention(nn.Module):
    """Multi-head attention: W_Q, W_K, W_V [head, d_model, d_head], W_O [head, d_head, d_model]."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.settings = settings
        heads, d_model, d_head = settings.n_heads, settings.d_model, settings.d_head
        self.W_Q = nn.Parameter(torch.empty(heads, d_model, d_head))
        self.W_K = nn.Parameter(torch.empty(heads, d_model, d_head))
        self.W_V = nn.Parameter(torch.empty(heads, d_model, d_head))
        self.W_O = nn.Parameter(torch.empty(heads, d_head, d_model))
        self.b_Q = nn.Parameter(torch.zeros(heads, d_head))
        self.b_K = nn.Parameter(torch.zeros(heads, d_head))
        self.b_V = nn.Parameter(torch.zeros(heads, d_head))
        self.b_O = nn.Parameter(torch.zeros(d_model))
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z = HookPoint()

    def forward(
        self, at_queries: Tensor, at_keys: Tensor, rows: Rows
    ) -> Float[Tensor, "batch query d_model"]:
        """Output for the queries, from the rows (of `rows.spread`) that queries and keys read."""
        inner = (self.hook_q, self.hook_k, self.hook_v, self.hook_attn_scores, self.hook_pattern)
        wide = self.settings.n_heads == 1 and self.settings.d_head == self.settings.d_model
        if wide and not watched(*inner, self.hook_z):
            return self._merged(at_queries, at_keys, rows)
        return self._by_head(at_queries, at_keys, rows)

    def _by_head(self, at_queries: Tensor, at_keys: Tensor, rows: Rows) -> Tensor:
        q, k = self._project(at_queries, "Q"), self._project(at_keys, "K")
        v = self.hook_v(rows.spread(self._project(at_keys, "V"), rows.at.keys))
        if watched(self.hook_q, self.hook_k):
            q = self.hook_q(rows.spread(q, rows.at.queries))
            k = self.hook_k(rows.spread(k, rows.at.keys))
            rows = rows._replace(distinct=None)
        scores = rows.pattern_scores(q / self.settings.d_head**0.5, k)
        pattern = self.hook_pattern(self.hook_attn_scores(scores).softmax(-1))
        z = self.hook_z(weighted_sums(pattern, v.transpose(1, 2)).transpose(1, 2))
        out = z.sum(2) if self.settings.freeze_W_O else z.flatten(2) @ self.W_O.flatten(0, 1)
        return out + self.b_O if self.settings.use_bias else out

    def _project(
        self, x: Float[Tensor, "batch pos d_model"], name: str
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Queries, keys or values (`name` is Q, K or V) of the rows of `x`."""
        heads, d_head = self.settings.n_heads, self.settings.d_head
        if name == "V" and self.settings.freeze_W_V:
            out = x.unsqueeze(2).expand(-1, -1, heads, -1)
        else:
            weight: Tensor = getattr(self, f"W_{name}")
            out = x @ weight.permute(1, 0, 2).reshape(-1, heads * d_head)
            out = out.unflatten(-1, (heads, d_head))
        bias: Tensor = getattr(self, f"b_{name}")
        return out + bias if self.settings.use_bias else out

    def _merged(self, at_queries: Tensor, at_keys: Tensor, rows: Rows) -> Tensor:
        """One head as wide as the residual stream, its matrices multiplied before the rows are.

        Scores are x W_Q W_K^T y^T and outputs (sum of a_i y_i) W_V W_O: neither keys nor values are
        formed, and what is frozen to the identity is left out. b_K would add the same to all scores
        of a query, which the softmax takes away again.
        """
        frozen_V, frozen_O = self.settings.freeze_W_V, self.settings.freeze_W_O
        scaled_K = self.W_K[0].T / self.settings.d_head**0.5
        q = at_queries @ (self.W_Q[0] @ scaled_K)
        if self.settings.use_bias:
            q = q + self.b_Q @ scaled_K
        pattern = rows.pattern_scores(q.unsqueeze(2), at_keys.unsqueeze(2)).softmax(-1)
        y = rows.spread(at_keys, rows.at.keys)
        out = weighted_sums(pattern, y.unsqueeze(1)).squeeze(1)
        if not (frozen_V and frozen_O):
            W_V, W_O = self.W_V[0], self.W_O[0]
            out = out @ (W_O if frozen_V else W_V if frozen_O else W_V @ W_O)
        if self.settings.use_bias:
            b_V = self.b_V[0] if frozen_O else self.b_V[0] @ self.W_O[0]
            out = out + (b_V + self.b_O)
        return out


class MLP(nn.Module):
    """Two-layer MLP: W_in [d_model, d_mlp], W_out [d_mlp, d_model]."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        assert settings.d_mlp is not None
        self.use_bias = settings.use_bias
        self.W_in = nn.Parameter(torch.empty(settings.d_model, settings.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(settings.d_mlp))
        self.W_out = nn.Parameter(torch.empty(settings.d_mlp, settings.d_model))
        self.b_out = nn.Parameter(torch.zeros(settings.d_model))
        self.activation = F.relu if settings.act_fn == "relu" else F.gelu
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self._add(x @ self.W_in, self.b_in)
        if self.activation is F.relu and not watched(self.hook_pre):
            post = F.relu_(pre)  # in place: nobody sees `pre`, and it is the largest of all tensors
        else:
            post = self.activation(_through(self.hook_pre, pre))
        post = _through(self.hook_post, post)
        return self._add(post @ self.W_out, self.b_out)

    def _add(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias if self.use_bias else x


class Block(nn.Module):
    """One layer: attention and, where there is one, an MLP, each added to the residual stream."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.attn = Attention(settings)
        self.ln1 = LayerNorm(settings.d_model) if settings.normalization else nn.Identity()
        self.hook_resid_pre = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_post = HookPoint()
        self.mlp = MLP(settings) if settings.d_mlp is not None else None
        if self.mlp is not None:
            self.ln2 = LayerNorm(settings.d_model) if settings.normalization else nn.Identity()
            self.hook_resid_mid = HookPoint()
            self.hook_mlp_out = HookPoint()

    def forward(self, resid: Tensor, rows: Rows) -> Float[Tensor, "batch query d_model"]:
        """Residual stream at the queries after this layer, from that at the inputs before."""
        resid = _through(self.hook_resid_pre, resid)
        normed = self.ln1(resid)
        at_queries, at_keys = _take(normed, rows.at.at_queries), _take(normed, rows.at.at_keys)
        resid = rows.spread(_take(resid, rows.at.at_queries), rows.at.queries)
        attn_out = self.attn(at_queries, at_keys, rows)
        resid = resid + _through(self.hook_attn_out, attn_out)
        if self.mlp is not None:
            resid = _through(self.hook_resid_mid, resid)
            resid = resid + _through(self.hook_mlp_out, self.mlp(self.ln2(resid)))
        return _through(self.hook_resid_post, resid)


class Transformer(HookedRootModule):
    """The transformer; initial weights are drawn from `generator` in the published order."""

    def __init__(self, settings: TransformerSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.settings = settings
        self._plans: dict[tuple[tuple[int, ...] | None, int, torch.device], Plan] = {}
        self.embed = Embed(settings)
        self.hook_embed = HookPoint()
        self.pos_embed = PosEmbed(settings)
        self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.n_layers))
        self.ln_final = LayerNorm(settings.d_model) if settings.normalization else nn.Identity()
        self.unembed = Unembed(settings)
        self._init_weights(generator)
        self._freeze()
        first = self.blocks[0]
        assert isinstance(first, Block)
        hooks = [hook for hook in first.ln1.modules() if isinstance(hook, HookPoint)]
        # Of rows that depend on token and position alone; who watches these sees the batch's.
        self._early = (self.hook_embed, self.hook_pos_embed, first.hook_resid_pre, *hooks)
        self.register_load_state_dict_pre_hook(_fit_state)
        self.setup()

    def _init_weights(self, generator: torch.Generator) -> None:
        order = ["embed.W_E", "pos_embed.W_pos"]
        for layer in range(self.settings.n_layers):
            order += [f"blocks.{layer}.attn.W_{name}" for name in "QOKV"]
            if self.settings.d_mlp is not None:
                order += [f"blocks.{layer}.mlp.W_in", f"blocks.{layer}.mlp.W_out"]
        std = INIT_GAIN / self.settings.d_model**0.5
        for name in [*order, "unembed.W_U"]:
            nn.init.normal_(self.get_parameter(name), std=std, generator=generator)

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf.startswith("b_") and not self.settings.use_bias:
                parameter.requires_grad_(False)
            if leaf in ("W_V", "W_O") and getattr(self.settings, f"freeze_{leaf}"):
                parameter.requires_grad_(False)
                parameter.data.copy_(torch.eye(self.settings.d_model).expand_as(parameter))

    def forward(
        self, tokens: Int[Tensor, "batch pos"], read: Sequence[int] | None = None
    ) -> Float[Tensor, "batch read d_vocab_out"]:
        """Logits at the positions `read`, in ascending order; at every position if None.

        With `read`, the hooks of a layer see only the rows that the positions read depend on.
        Without a hook on it, an activation that is not needed (a key, a value) is not formed.

        Raises:
            ValueError: a position to read is not there, or there are fewer positions than the mask
                has and one that is needed may attend to none of them.
        """
        plan = self._plan(None if read is None else tuple(read), tokens.shape[1], tokens.device)
        resid, distinct = self._embed(tokens, plan[0][0].inputs, read is not None)
        for block, (at, blind) in zip(self.blocks, plan, strict=True):
            resid = block(resid, Rows(at, blind, distinct))
            distinct = None
        return self.unembed(self.ln_final(resid))

    def _plan(self, read: tuple[int, ...] | None, n_pos: int, device: torch.device) -> Plan:
        """Rows and mask of each layer; worked out once for each choice of positions."""
        if n_pos > self.settings.n_ctx:
            raise ValueError(f"tokens: found {n_pos} positions; allowed are {self.settings.n_ctx}")
        if read is not None and n_pos <= max(read, default=0):
            raise ValueError(f"read: found {read}; there are {n_pos} positions")
        key = (read, n_pos, device)
        if key not in self._plans:
            allowed = [row[:n_pos] for row in self.settings.allowed[:n_pos]]
            n_layers, everywhere = self.settings.n_layers, tuple(range(n_pos))
            if read is None:
                _check_sight(allowed, everywhere)
                layers = (LayerRows(everywhere, everywhere, everywhere),) * n_layers
            else:
                layers = rows_needed(allowed, read, n_layers)
            blinds = [layer.blind(allowed) for layer in layers]
            moved = [None if blind is None else blind.to(device) for blind in blinds]
            self._plans[key] = list(zip(layers, moved, strict=True))
        return self._plans[key]

    def _embed(
        self, tokens: Tensor, positions: tuple[int, ...], fast: bool
    ) -> tuple[Tensor, Distinct | None]:
        """Residual stream before the first layer: of the batch, or of its distinct rows."""
        W_pos = self.pos_embed.W_pos[_index(tuple(range(self.settings.n_ctx)), positions)]
        if fast and 4 * self.settings.d_vocab < tokens.shape[0] and not watched(*self._early):
            return self.embed.W_E.unsqueeze(1) + W_pos, Distinct(tokens)
        at = _index(tuple(range(tokens.shape[1])), positions)
        embedded = _through(self.hook_embed, F.embedding(tokens[:, at], self.embed.W_E))
        pos = _through(self.hook_pos_embed, W_pos.expand(tokens.shape[0], -1, -1))
        return embedded + pos, None


def _fit_state(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Drop the causal mask that `HookedTransformer` saved; refuse what the model cannot hold.

    A frozen weight is never read, so that another value in its place would be ignored silently.
    """
    for key in [key for key in state if key.endswith(("attn.mask", "attn.IGNORE"))]:
        del state[key]
    for key, own in module.named_parameters():
        if not own.requires_grad and key in state and not torch.equal(state[key].to(own), own):
            raise RuntimeError(f"{key}: this model freezes it, and the values to load are others")
