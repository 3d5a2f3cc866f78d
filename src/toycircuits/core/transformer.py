"""The transformer that all token experiments share, as a `HookedRootModule`.

Pre-norm residual stream, any boolean attention mask, MLP or none, LayerNorm or none, biases or
none, value and output matrices that may be frozen to the identity. Hook names and state-dict keys
are those of TransformerLens's `HookedTransformer` (removed in TransformerLens 4).

Only what is read is computed: `forward(tokens, read=...)` takes the positions whose logits are
wanted, and one walk back over the layers (`rows_needed`) finds the rows each layer has to touch.
Without `read` every row is computed and every hook sees its usual shape.
"""

from collections.abc import Sequence
from typing import Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from toycircuits.core.config import Settings
from toycircuits.core.products import attention_scores, weighted_sums
from toycircuits.core.rows import (
    ROWS_PER_ENTRY,
    LayerPlan,
    Rows,
    TokenTable,
    all_rows,
    apply,
    gather,
    index_of,
    rows_needed,
    take,
)

Allowed: TypeAlias = list[list[bool]]  # [query, key]
PlanKey: TypeAlias = tuple[tuple[int, ...] | None, int, torch.device]  # read, positions, device
INIT_GAIN = 0.8  # every W_* starts as N(0, (0.8 / sqrt(d_model))^2), TransformerLens's old default
LAYER_NORM_EPS = 1e-5


class TransformerSettings(Settings):
    """Shape of a `Transformer`.

    Attributes:
        d_mlp: width of the MLPs, or None for attention only.
        normalization: "LN" (before attention, MLP and unembedding) or None.
        use_bias: whether biases are trained; otherwise all of them, b_U too, are frozen at zero.
        freeze_W_V, freeze_W_O: freeze the matrix to the identity, so that a head can only copy.
        masks: one mask for all layers, or one for each. A mask has one string for each query
            position, with one character for each key position: "1" where the query may attend to
            the key and "." where not.
        blind_queries: whether a query may have no key. Its attention pattern is a row of zeros.
        fixed_tokens: for each position the token that it holds in all sequences of the task, or
            None; empty if the task fixes no token.
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
    masks: tuple[tuple[str, ...], ...] = Field(min_length=1, max_length=64)
    blind_queries: bool = False
    fixed_tokens: tuple[int | None, ...] = ()

    @property
    def n_ctx(self) -> int:
        """Number of positions."""
        return len(self.masks[0])

    @property
    def allowed(self) -> list[Allowed]:
        """The mask of each layer as booleans, [query, key]."""
        masks = [[[cell == "1" for cell in row] for row in mask] for mask in self.masks]
        return masks * self.n_layers if len(masks) == 1 else masks

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.masks) not in (1, self.n_layers):
            raise ValueError(
                f"masks: found {len(self.masks)}; allowed are 1 for all layers or {self.n_layers}"
            )
        for mask in self.masks:
            self._check_mask(mask)
        if self.fixed_tokens and len(self.fixed_tokens) != self.n_ctx:
            found, allowed = len(self.fixed_tokens), f"none or {self.n_ctx}, one for each position"
            raise ValueError(f"fixed_tokens: found {found}; allowed are {allowed}")
        for position, token in enumerate(self.fixed_tokens):
            if token is not None and not 0 <= token < self.d_vocab:
                raise ValueError(
                    f"fixed_tokens: found {token} at position {position}; "
                    f"allowed are null and tokens below {self.d_vocab}"
                )
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

    def _check_mask(self, mask: tuple[str, ...]) -> None:
        if len(mask) != self.n_ctx or not mask:
            allowed = "one row for each position, as many in each layer"
            raise ValueError(f"masks: found a mask of {len(mask)} rows; allowed are {allowed}")
        for query, row in enumerate(mask):
            if len(row) != self.n_ctx or set(row) - {"1", "."}:
                raise ValueError(
                    f"mask row {query} is {row!r}; allowed are {self.n_ctx} characters 1 or ."
                )
            if "1" not in row and not self.blind_queries:
                raise ValueError(f"mask row {query} is {row!r}; a query must see at least one key")


def has_hooks(*hooks: HookPoint) -> bool:
    """Whether one of `hooks` has a hook function, which looks at an activation or changes it."""
    return any(hook._forward_hooks or hook._backward_hooks for hook in hooks)


def call_if_hooked(hook: HookPoint, x: Tensor) -> Tensor:
    """`hook(x)` if the hook point has a hook function; a call costs more than small arithmetic."""
    return hook(x) if has_hooks(hook) else x


class LayerNorm(nn.Module):
    """LayerNorm over d_model, with TransformerLens's hooks and parameter names."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if not has_hooks(self.hook_scale, self.hook_normalized):
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
        self, queries: Rows, keys: Rows, mask_bias: Float[Tensor, "query key"] | None
    ) -> Float[Tensor, "batch query d_model"]:
        """What attention adds to the residual stream at the queries.

        Args:
            queries, keys: rows [d_model] that the queries, and the keys and values, are made of.
            mask_bias: added to the scores; -inf where a query may not attend to a key.
        """
        inner = (self.hook_q, self.hook_k, self.hook_v, self.hook_attn_scores, self.hook_pattern)
        wide = self.settings.n_heads == 1 and self.settings.d_head == self.settings.d_model
        if wide and not has_hooks(*inner, self.hook_z):
            return self._merged(queries, keys, mask_bias)
        return self._by_head(queries, keys, mask_bias)

    def _by_head(self, queries: Rows, keys: Rows, mask_bias: Tensor | None) -> Tensor:
        """Attention as TransformerLens writes it, every activation passing through its hook."""
        q, k = self._project(queries, "Q"), self._project(keys, "K")
        v = self.hook_v(gather(self._project(keys, "V")))
        if has_hooks(self.hook_q, self.hook_k):
            q, k = self.hook_q(gather(q)), self.hook_k(gather(k))
        q = apply(lambda x: x / self.settings.d_head**0.5, q)
        scores = self.hook_attn_scores(attention_scores(q, k, mask_bias))
        pattern = self.hook_pattern(scores.softmax(-1))
        z = self.hook_z(weighted_sums(pattern, v.transpose(1, 2)).transpose(1, 2))
        out = z.sum(2) if self.settings.freeze_W_O else z.flatten(2) @ self.W_O.flatten(0, 1)
        return out + self.b_O if self.settings.use_bias else out

    def _project(self, rows: Rows, name: str) -> Rows:
        """Queries, keys or values (`name` is Q, K or V), rows [head, d_head]."""
        heads, d_head = self.settings.n_heads, self.settings.d_head
        weight: Tensor = getattr(self, f"W_{name}")
        bias: Tensor = getattr(self, f"b_{name}")

        def project(x: Float[Tensor, "batch pos d_model"]) -> Tensor:
            if name == "V" and self.settings.freeze_W_V:
                out = x.unsqueeze(2).expand(-1, -1, heads, -1)
            else:
                out = x @ weight.permute(1, 0, 2).reshape(-1, heads * d_head)
                out = out.unflatten(-1, (heads, d_head))
            return out + bias if self.settings.use_bias else out

        return apply(project, rows)

    def _merged(self, queries: Rows, keys: Rows, mask_bias: Tensor | None) -> Tensor:
        """One head as wide as the residual stream, its matrices multiplied before the rows are.

        Scores are x W_Q W_K^T y^T and outputs (sum of a_i y_i) W_V W_O: neither keys nor values are
        formed, and what is frozen to the identity is left out. b_K would add the same to all scores
        of a query, which the softmax takes away again.
        """
        scaled_K = self.W_K[0].T / self.settings.d_head**0.5
        W_QK = self.W_Q[0] @ scaled_K

        def project(x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos 1 d_model"]:
            q = x @ W_QK
            return (q + self.b_Q @ scaled_K if self.settings.use_bias else q).unsqueeze(2)

        q, k = apply(project, queries), apply(lambda x: x.unsqueeze(2), keys)
        pattern = attention_scores(q, k, mask_bias).softmax(-1)
        out = weighted_sums(pattern, gather(keys).unsqueeze(1)).squeeze(1)
        return self._output(out)

    def _output(
        self, y: Float[Tensor, "batch query d_model"]
    ) -> Float[Tensor, "batch query d_model"]:
        """What the one head writes of `y`, the mean of the rows that it attends to."""
        frozen_V, frozen_O = self.settings.freeze_W_V, self.settings.freeze_W_O
        if not (frozen_V and frozen_O):
            W_V, W_O = self.W_V[0], self.W_O[0]
            y = y @ (W_O if frozen_V else W_V if frozen_O else W_V @ W_O)
        if self.settings.use_bias:
            b_V = self.b_V[0] if frozen_O else self.b_V[0] @ self.W_O[0]
            y = y + (b_V + self.b_O)
        return y


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
        if self.activation is F.relu and not has_hooks(self.hook_pre):
            post = F.relu_(pre)  # in place: nobody sees `pre`, and it is the largest of all tensors
        else:
            post = self.activation(call_if_hooked(self.hook_pre, pre))
        post = call_if_hooked(self.hook_post, post)
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

    def forward(self, resid: Rows, layer: LayerPlan) -> Float[Tensor, "batch query d_model"]:
        """Residual stream at the queries after this layer, from that at the inputs before it."""
        rows = layer.rows
        if isinstance(resid, Tensor):  # a table of rows is computed only where nobody hooks them
            resid = call_if_hooked(self.hook_resid_pre, resid)
        normed = apply(self.ln1, resid)
        queries, keys = take(normed, rows.query_index), take(normed, rows.key_index)
        x = gather(take(resid, rows.query_index))
        x = x + call_if_hooked(self.hook_attn_out, self.attn(queries, keys, layer.mask_bias))
        if self.mlp is not None:
            x = call_if_hooked(self.hook_resid_mid, x)
            x = x + call_if_hooked(self.hook_mlp_out, self.mlp(self.ln2(x)))
        return call_if_hooked(self.hook_resid_post, x)


class Transformer(HookedRootModule):
    """The transformer; initial weights are drawn from `generator` in the published order."""

    def __init__(self, settings: TransformerSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.settings = settings
        self._plans: dict[PlanKey, list[LayerPlan]] = {}
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
        # Hooks of rows that depend on token and position alone. A hook has to see the batch's rows.
        self._early_hooks = (self.hook_embed, self.hook_pos_embed, first.hook_resid_pre, *hooks)
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
            ValueError: a position to read does not exist, or `tokens` is shorter than the mask, and
                a needed position may attend only to positions beyond its end.
        """
        plan = self._plan(None if read is None else tuple(read), tokens.shape[1], tokens.device)
        resid = self._embed(tokens, plan[0].rows.inputs, may_share=read is not None)
        for block, layer in zip(self.blocks, plan, strict=True):
            resid = block(resid, layer)
        return self.unembed(self.ln_final(resid))

    def _plan(
        self, read: tuple[int, ...] | None, n_pos: int, device: torch.device
    ) -> list[LayerPlan]:
        """Rows and mask of each layer; worked out once for each choice of positions."""
        if n_pos > self.settings.n_ctx:
            raise ValueError(f"tokens: found {n_pos} positions; allowed are {self.settings.n_ctx}")
        if read is not None and n_pos <= max(read, default=0):
            raise ValueError(f"read: found {read}; there are {n_pos} positions")
        key = (read, n_pos, device)
        if key not in self._plans:
            allowed = [row[:n_pos] for row in self.settings.allowed[0][:n_pos]]
            n_layers = self.settings.n_layers
            if read is None:
                layers = all_rows(allowed, n_layers)
            else:
                layers = rows_needed(allowed, read, n_layers)
            biases = [rows.mask_bias(allowed) for rows in layers]
            moved = [None if bias is None else bias.to(device) for bias in biases]
            self._plans[key] = [*map(LayerPlan, layers, moved)]
        return self._plans[key]

    def _embed(self, tokens: Tensor, positions: tuple[int, ...], may_share: bool) -> Rows:
        """Residual stream before the first layer, at `positions`.

        Args:
            may_share: compute each different row once if the batch is large and nobody hooks them.
        """
        W_pos = self.pos_embed.W_pos[index_of(positions, range(self.settings.n_ctx))]
        large = tokens.shape[0] > ROWS_PER_ENTRY * self.settings.d_vocab
        if may_share and large and not has_hooks(*self._early_hooks):
            return TokenTable(self.embed.W_E.unsqueeze(1) + W_pos, positions, tokens)
        at = index_of(positions, range(tokens.shape[1]))
        embedded = call_if_hooked(self.hook_embed, F.embedding(tokens[:, at], self.embed.W_E))
        pos = call_if_hooked(self.hook_pos_embed, W_pos.expand(tokens.shape[0], -1, -1))
        return embedded + pos


def _fit_state(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Drop the causal mask that `HookedTransformer` saved; refuse what the model cannot hold.

    A frozen weight is never read, so that another value in its place would be ignored silently.
    """
    for key in [key for key in state if key.endswith(("attn.mask", "attn.IGNORE"))]:
        del state[key]
    for key, frozen in module.named_parameters():
        if frozen.requires_grad or key not in state:
            continue
        if not torch.equal(state[key].to(frozen), frozen):
            raise RuntimeError(f"{key}: this model freezes it, and the values to load are others")
