"""The transformer that all token experiments share, as a `HookedRootModule`.

Pre-norm residual stream, any boolean attention mask, MLP or none, LayerNorm or none, biases or
none, value and output matrices that may be frozen to the identity. Hook names and state-dict keys
are those of TransformerLens's `HookedTransformer` (removed in TransformerLens 4).

Only what is read is computed: `forward(tokens, read=...)` takes the positions whose logits are
wanted, and one walk back over the layers (`rows_needed`) finds the rows each layer has to touch.
Without `read` every row is computed and every hook sees its usual shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from toycircuits.config import Settings

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
    """

    inputs: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]


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
        keys = tuple(key for key in range(len(allowed)) if any(allowed[q][key] for q in queries))
        inputs = tuple(sorted({*queries, *keys}))
        layers.append(LayerRows(inputs, queries, keys))
        queries = inputs
    return tuple(reversed(layers))


def _take(x: Tensor, have: tuple[int, ...], want: tuple[int, ...]) -> Tensor:
    """Positions `want` of `x`, whose position axis (the second) holds the positions `have`."""
    if want == have:
        return x
    index = [have.index(position) for position in want]
    if index == list(range(index[0], index[-1] + 1)):
        return x[:, index[0] : index[-1] + 1]
    return x[:, index]


def _spread(table: Float[Tensor, "vocab pos *d"], tokens: Int[Tensor, "batch pos"]) -> Tensor:
    """Row `table[tokens[b, i], i]` for every sequence b and position i.

    Below the first attention, a row depends on its token and position alone; so it is computed
    once for each such pair. `embedding`, not indexing: its backward pass is the faster by far.
    """
    n_pos = table.shape[1]
    index = tokens * n_pos + torch.arange(n_pos, device=tokens.device)
    rows = F.embedding(index, table.reshape(table.shape[0] * n_pos, -1))
    return rows.reshape(*tokens.shape, *table.shape[2:])


class LayerNorm(nn.Module):
    """LayerNorm over d_model, with TransformerLens's hooks and parameter names."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
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

    def project(
        self, x: Float[Tensor, "batch pos d_model"], name: str
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Queries, keys or values (`name` is Q, K or V) of the rows of `x`, before their hook."""
        heads, d_head = self.settings.n_heads, self.settings.d_head
        if name == "V" and self.settings.freeze_W_V:
            out = x.unsqueeze(2).expand(-1, -1, heads, -1)
        else:
            weight: Tensor = getattr(self, f"W_{name}")
            out = x @ weight.permute(1, 0, 2).reshape(-1, heads * d_head)
            out = out.unflatten(-1, (heads, d_head))
        bias: Tensor = getattr(self, f"b_{name}")
        return out + bias if self.settings.use_bias else out

    def forward(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        allowed: list[list[bool]],
    ) -> Float[Tensor, "batch query d_model"]:
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        # Sums of products, not matmul: a batch of thousands of tiny matrix products is slower.
        scores = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) / self.settings.d_head**0.5
        if not all(all(row) for row in allowed):
            blind = ~torch.tensor(allowed, device=scores.device)
            scores = scores.masked_fill(blind, -torch.inf)
        pattern = self.hook_pattern(self.hook_attn_scores(scores).softmax(-1))
        z = self.hook_z((pattern.unsqueeze(-1) * v.unsqueeze(2)).sum(3).transpose(1, 2))
        out = z.sum(2) if self.settings.freeze_W_O else z.flatten(2) @ self.W_O.flatten(0, 1)
        return out + self.b_O if self.settings.use_bias else out


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
        pre = x @ self.W_in
        post = self.hook_post(self.activation(self.hook_pre(self._add(pre, self.b_in))))
        return self._add(post @ self.W_out, self.b_out)

    def _add(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias if self.use_bias else x


class Block(nn.Module):
    """One layer: attention and, where there is one, an MLP, each added to the residual stream."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.allowed = settings.allowed
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

    def forward(
        self, resid: Tensor, rows: LayerRows, spread: Callable[[Tensor, tuple[int, ...]], Tensor]
    ) -> Float[Tensor, "batch query d_model"]:
        """Residual stream at `rows.queries` after this layer, from that at `rows.inputs` before.

        `spread(x, positions)` turns a table of distinct rows into the rows of the batch.
        """
        resid = self.hook_resid_pre(resid)
        normed = self.ln1(resid)
        at_queries = _take(normed, rows.inputs, rows.queries)
        at_keys = _take(normed, rows.inputs, rows.keys)
        q = spread(self.attn.project(at_queries, "Q"), rows.queries)
        k = spread(self.attn.project(at_keys, "K"), rows.keys)
        v = spread(self.attn.project(at_keys, "V"), rows.keys)
        allowed = [[self.allowed[query][key] for key in rows.keys] for query in rows.queries]
        resid = spread(_take(resid, rows.inputs, rows.queries), rows.queries)
        resid = resid + self.hook_attn_out(self.attn(q, k, v, allowed))
        if self.mlp is not None:
            resid = self.hook_resid_mid(resid)
            resid = resid + self.hook_mlp_out(self.mlp(self.ln2(resid)))
        return self.hook_resid_post(resid)


class Transformer(HookedRootModule):
    """The transformer; initial weights are drawn from `generator` in the published order."""

    def __init__(self, settings: TransformerSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.settings = settings
        self.embed = Embed(settings)
        self.hook_embed = HookPoint()
        self.pos_embed = PosEmbed(settings)
        self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.n_layers))
        self.ln_final = LayerNorm(settings.d_model) if settings.normalization else nn.Identity()
        self.unembed = Unembed(settings)
        self._init_weights(generator)
        self._freeze()
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

        With `read`, the hooks of a layer see only the rows that the positions read depend on, and
        those before the first layer's `hook_q/k/v` see each distinct (token, position) pair once.
        """
        settings = self.settings
        everywhere = tuple(range(settings.n_ctx))[: tokens.shape[1]]
        if read is None:
            plan = (LayerRows(everywhere, everywhere, everywhere),) * settings.n_layers
        else:
            plan = rows_needed(settings.allowed, read, settings.n_layers)
        positions = plan[0].inputs
        embedded, spread = self._embed(tokens, positions, read is not None)
        for layer, (block, rows) in enumerate(zip(self.blocks, plan, strict=True)):
            embedded = block(embedded, rows, spread if layer == 0 else _as_it_is)
        return self.unembed(self.ln_final(embedded))

    def _embed(
        self, tokens: Tensor, positions: tuple[int, ...], distinct: bool
    ) -> tuple[Tensor, Callable[[Tensor, tuple[int, ...]], Tensor]]:
        W_pos = _take(
            self.pos_embed.W_pos.unsqueeze(0), tuple(range(self.settings.n_ctx)), positions
        )
        if distinct and self.settings.d_vocab < tokens.shape[0]:
            table = self.hook_embed(self.embed.W_E.unsqueeze(1)) + self.hook_pos_embed(W_pos)
            return table, lambda x, at: _spread(x, tokens[:, list(at)])
        embedded = self.hook_embed(F.embedding(tokens[:, list(positions)], self.embed.W_E))
        pos = self.hook_pos_embed(W_pos.expand(tokens.shape[0], -1, -1))
        return embedded + pos, _as_it_is


def _as_it_is(x: Tensor, positions: tuple[int, ...]) -> Tensor:
    return x


def _fit_state(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Drop the causal mask that `HookedTransformer` saved; refuse what the model cannot hold.

    A frozen weight is never read, so that another value in its place would be ignored silently.
    """
    for key in [key for key in state if key.endswith(("attn.mask", "attn.IGNORE"))]:
        del state[key]
    for key, own in module.named_parameters():
        if not own.requires_grad and key in state and not torch.equal(state[key].to(own), own):
            raise RuntimeError(f"{key}: this model freezes it, and the values to load are others")
