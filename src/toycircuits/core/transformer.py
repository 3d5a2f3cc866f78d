"""The transformer that all token experiments share, as a `HookedRootModule`.

It has a pre-norm residual stream, and a boolean mask for each layer. MLPs, LayerNorm and biases
are optional. The value and output matrices can be frozen to the identity. Hook names and state-dict
keys are those of TransformerLens's `HookedTransformer` (removed in TransformerLens 4).

The forward pass has two forms. The form with hooks (layers.py) computes every activation, as
TransformerLens does, and calls every hook. The fast form (fast_form.py) computes only the logits at
the positions `read`, and what they depend on. `forward(tokens, read=...)` uses the fast form if no
module has a hook.
"""

from collections.abc import Sequence
from typing import Literal, Self, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from toycircuits.core import fast_form
from toycircuits.core.config import Settings
from toycircuits.core.layers import (
    Block,
    Embed,
    HookPoint,
    PosEmbed,
    Root,
    Unembed,
    has_hooks,
    normalization,
)
from toycircuits.core.plans import Plan, make_plan
from toycircuits.core.rows import Allowed, rows_needed

# What a plan (plans.py) is made for: the positions to read, the number of positions, whether tokens
# are fixed, whether tables (rows.py) save time, the device.
PlanKey: TypeAlias = tuple[tuple[int, ...], int, bool, bool, torch.device]
INIT_GAIN = 0.8  # every W_* starts as N(0, (0.8 / sqrt(d_model))^2), TransformerLens's old default
# With fewer numbers in a row, it costs more time than it saves to compute constants (rows.py) once.
NARROW = 32
SEQUENCES_PER_TOKEN = 4  # tables (rows.py) save time if batch / d_vocab is larger


class TransformerSettings(Settings):
    """Shape of a `Transformer`.

    Attributes:
        d_mlp: width of the MLPs, or None for attention only.
        normalization: "LN" (before attention, MLP and unembedding) or None.
        use_bias: whether the biases b_* are trained. Otherwise all of them, also b_U, are frozen
            at zero. The bias of LayerNorm is always trained.
        freeze_W_V, freeze_W_O: freeze the matrix to the identity. This needs d_head = d_model.
        masks: one mask for all layers, or one for each. A mask has one string for each query
            position, with one character for each key position: "1" where the query may attend to
            the key and "." where not.
        blind_queries: whether a mask may leave a query without any key. The attention pattern of
            such a query is a row of zeros.
        fixed_tokens: for each position, the token that it holds in all sequences of the task, or
            None. Empty if the task fixes no token.
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
    def allowed(self) -> list[list[list[bool]]]:
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


class Transformer(Root):
    """The transformer; its initial weights are drawn in the order of `HookedTransformer`."""

    @torch.inference_mode(False)  # whatever mode the caller is in, the weights can be trained
    def __init__(self, settings: TransformerSettings, generator: torch.Generator) -> None:
        """Make the model on the CPU.

        Args:
            generator: draws the initial weights; nothing else is random. Because the order is that
                of `HookedTransformer`, seeds of studies that used it give the same weights.
        """
        super().__init__()
        self.settings = settings
        self._plans: dict[PlanKey, Plan] = {}
        self._forbidden: dict[tuple[int, torch.device], list[Tensor]] = {}
        self.embed = Embed(settings)
        self.hook_embed = HookPoint()
        self.pos_embed = PosEmbed(settings)
        self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.n_layers))
        self.ln_final = normalization(settings)
        self.unembed = Unembed(settings)
        self._init_weights(generator)
        self._freeze()
        self.register_load_state_dict_pre_hook(_fit_state)
        self.setup()

    def setup(self) -> None:
        """Name all modules; call it again after a hook point is added."""
        super().setup()
        self._parts = tuple(module for module in self.modules() if module is not self)

    @property
    def layers(self) -> tuple[Block, ...]:
        """The layers from the first to the last."""
        return tuple(cast(Block, block) for block in self.blocks)

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
        for parameter in self.frozen().values():
            parameter.requires_grad_(False)
            if parameter.ndim == 3:  # W_V or W_O; a bias is zero already
                size = len(parameter[0])
                identity = torch.eye(size, dtype=parameter.dtype, device=parameter.device)
                parameter.data.copy_(identity.expand_as(parameter))

    def frozen(self) -> dict[str, nn.Parameter]:
        """The parameters that the settings freeze, by name. The fast form does not read them."""
        leaves = [leaf for leaf in ("W_V", "W_O") if getattr(self.settings, f"freeze_{leaf}")]
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if (leaf := name.rpartition(".")[2]) in leaves
            or (leaf.startswith("b_") and not self.settings.use_bias)
        }

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        read: Sequence[int] | None = None,
        fixed: bool = False,
        stop_at_layer: int | None = None,
    ) -> Float[Tensor, "batch read d_out"]:
        """Logits [batch, read, d_vocab_out] at the positions `read`, in ascending order.

        Args:
            tokens: token of each position; at most `settings.n_ctx` positions.
            read: the positions to return, or None for every position.
            fixed: whether all sequences hold `settings.fixed_tokens`. The fast form then ignores
                the tokens at these positions, and may compute once what all sequences share.
            stop_at_layer: return the residual stream before this layer, [batch, read, d_model],
                instead of logits, as TransformerLens does. Negative numbers count from the end.

        Raises:
            ValueError: the sequences have too many positions; `read` is empty, or a position in it
                does not exist; or the sequences are shorter than the mask, and a position that is
                needed may attend only to positions beyond their end.
        """
        if tokens.shape[1] > self.settings.n_ctx:
            allowed = f"allowed are {self.settings.n_ctx}"
            raise ValueError(f"tokens: found {tokens.shape[1]} positions; {allowed}")
        if read is None:
            return self._with_hooks(tokens, stop_at_layer)
        if self.has_hooks() or stop_at_layer is not None:
            _check_read(read, tokens.shape[1])
            return self._with_hooks(tokens, stop_at_layer)[:, sorted(set(read))]
        return fast_form.logits(self, tokens, self._plan(tuple(read), tokens, fixed))

    def has_hooks(self) -> bool:
        """Whether any module in the model has a hook."""
        return has_hooks(self._parts)

    def _with_hooks(self, tokens: Tensor, stop_at_layer: int | None) -> Tensor:
        """Logits at every position, or the residual stream before a layer."""
        forbidden = self._masks(tokens)
        resid = self.hook_embed(self.embed(tokens)) + self.hook_pos_embed(self.pos_embed(tokens))
        for block, mask in zip(self.layers[:stop_at_layer], forbidden, strict=False):
            resid = block(resid, mask)
        if stop_at_layer is not None:
            return cast(Tensor, resid)
        return cast(Tensor, self.unembed(self.ln_final(resid)))

    def _masks(self, tokens: Tensor) -> list[Bool[Tensor, "query key"]]:
        """For each layer, where a query may not attend to a key."""
        key = (tokens.shape[1], tokens.device)
        if key not in self._forbidden:
            allowed = self._allowed(tokens.shape[1])
            with torch.inference_mode(False):  # gradients may flow past the masks in later calls
                self._forbidden[key] = [
                    ~torch.tensor(mask, dtype=torch.bool, device=tokens.device) for mask in allowed
                ]
        return self._forbidden[key]

    def _allowed(self, n_pos: int, queries: Sequence[Sequence[int]] | None = None) -> list[Allowed]:
        """The masks of sequences of `n_pos` tokens.

        Args:
            queries: for each layer, the positions to check; None for all.

        Raises:
            ValueError: a query may attend only to positions beyond the end.
        """
        for layer, mask in enumerate(self.settings.allowed):
            for query in range(n_pos) if queries is None else queries[layer]:
                if any(mask[query]) and not any(mask[query][:n_pos]):
                    text = f"position {query} may attend to none of them"
                    raise ValueError(f"found {n_pos} positions; {text}")
        return [[row[:n_pos] for row in mask[:n_pos]] for mask in self.settings.allowed]

    def _plan(self, read: tuple[int, ...], tokens: Tensor, fixed: bool) -> Plan:
        """What the fast form computes for these positions; each plan is made once and kept."""
        n_pos = tokens.shape[1]
        tables = len(tokens) > SEQUENCES_PER_TOKEN * self.settings.d_vocab
        key = (read, n_pos, fixed, tables, tokens.device)
        if key not in self._plans:
            _check_read(read, n_pos)
            known = fixed and self.settings.fixed_tokens and self.settings.d_model >= NARROW
            fixed_tokens = self.settings.fixed_tokens[:n_pos] if known else (None,) * n_pos
            masks = [[row[:n_pos] for row in mask[:n_pos]] for mask in self.settings.allowed]
            queries = [rows.queries for rows in rows_needed(masks, read)]
            allowed = self._allowed(n_pos, queries)
            self._plans[key] = make_plan(allowed, fixed_tokens, read, tables, tokens.device)
        return self._plans[key]


def _check_read(read: Sequence[int], n_pos: int) -> None:
    """Raise a `ValueError` if there is no position to read, or one of them does not exist."""
    if not read or min(read) < 0 or max(read) >= n_pos:
        raise ValueError(f"read: found {list(read)}; allowed are positions 0 to {n_pos - 1}")


def _fit_state(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop the causal mask that `HookedTransformer` saved, and add the frozen weights.

    The settings determine the frozen weights, so a state may leave them out.

    Raises:
        RuntimeError: the state has other values for a frozen weight: it is of another model.
    """
    buffers = ("attn.mask", "attn.IGNORE")
    for key in [key for key in state if key.startswith(prefix) and key.endswith(buffers)]:
        del state[key]
    for name, frozen in cast(Transformer, module).frozen().items():
        if not torch.equal(state.setdefault(prefix + name, frozen.detach()).to(frozen), frozen):
            text = "this model freezes it, and the values to load are others"
            raise RuntimeError(f"{prefix}{name}: {text}")
