"""Softmax attention over examples: one layer whose only query is z_q, or a causal stack of layers.

One layer: TF(Z, z_q) = sum_h softmax(z_q W_Q W_K^T Z^T / sqrt(d + 1)) Z W_V W_O, one number. No
positions, no residual stream, no biases.

Stack: the tokens are the examples and then z_q. Each attends to earlier tokens alone; the first
has nothing to attend to, and becomes zero. Every layer writes d + 1 entries, and a linear read-out
of the last layer gives one number.

              z1 z2 z3             Rows: query, columns: key. The last layer computes the row of
        z2     1  .  .             z_q alone. With `lengths`, z_q has one row for each length, which
        z3     1  1  .             sees as many examples. No token sees z_q, so one pass over the
        z_q    1  1  1             tokens serves all lengths.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from toycircuits.core.config import Settings
from toycircuits.core.layers import HookPoint, Layer, Root, has_hooks
from toycircuits.experiments.linear_regression.task import DataSettings

SMALL, SMALL_QK = 1e-6, 1e-4  # sizes of the identities of the initialisations small_id*
NARROW = 16  # entries of a token, up to which the compiled form has the batch last


class StackSettings(Settings):
    """A stack of layers.

    Attributes:
        tied: all layers share their weights.
        residual: each layer adds to its input, rather than replacing it.
    """

    n_layers: int = Field(ge=2, le=64)
    tied: bool
    residual: bool


class ModelSettings(Settings):
    """Shape of the model and its initial weights.

    Attributes:
        init: "random", PyTorch's default for linear layers; "small_id", W_Q, W_K and W_V at the
            identity times 1e-6; "small_id_qk", W_Q and W_K at the identity times 1e-4;
            "oppo_small_id", W_Q and W_K at the identity times 1e-6, and W_Q negated in the second
            half of the heads. All other weights start as under "random".
        stack: a causal stack, or None for one layer.
    """

    n_heads: int = Field(ge=1, le=256)
    init: Literal["random", "small_id", "small_id_qk", "oppo_small_id"]
    stack: StackSettings | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.init == "oppo_small_id" and self.n_heads % 2:
            raise ValueError(
                f"n_heads: found {self.n_heads}; allowed with init oppo_small_id are even numbers"
            )
        return self

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.stack.n_layers if self.stack else 1


class FactoredAttention(torch.autograd.Function):
    """Attention of all heads as scores (queries QK) keys^T and output (pattern keys) OV.

    Keys and values are never computed, so a head costs O(L d) instead of O(L d^2). The gradient is
    written out, because PyTorch's bookkeeping of so many small operations costs as much as the
    operations. With P the pattern, G the gradient of the output, and all products summed over batch
    and queries,

        dOV = (P keys)^T G                   dP = (G OV^T) keys^T
        dS = P (dP - sum_keys P dP)          dQK = queries^T (dS keys)
        dqueries = (dS keys) QK^T            dkeys = dS^T (queries QK) + P^T (G OV^T)
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, mask_bias: Tensor | None, *weights: Tensor
    ) -> Float[Tensor, "batch query d_out"]:
        """Same arguments as `Attention.factored`; `weights` are W_Q, W_K, W_V and W_O."""
        W_Q, W_K, W_V, W_O = weights
        heads, d_model, _ = W_Q.shape
        batch = len(queries)
        rows = queries.reshape(-1, d_model)  # [batch_query, d_model]
        qk = torch.bmm(W_Q, W_K.transpose(1, 2)).div_(d_model**0.5)
        qk = qk.transpose(0, 1).reshape(d_model, -1)
        ov = torch.bmm(W_V, W_O).view(heads * d_model, -1)
        mapped = _by_head(rows @ qk, batch, heads)
        if mask_bias is None:
            scores = torch.bmm(mapped, keys.transpose(1, 2))
        else:
            scores = torch.baddbmm(mask_bias.repeat(heads, 1), mapped, keys.transpose(1, 2))
        pattern = scores.softmax(-1)
        mixed = _by_row(torch.bmm(pattern, keys), heads)
        ctx.save_for_backward(rows, keys, *weights, qk, ov, mapped, pattern, mixed)
        return (mixed @ ov).view(batch, -1, ov.shape[1])

    @staticmethod
    @once_differentiable  # what is saved has no gradient
    def backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all arguments, from the gradient of the output."""
        rows, keys, W_Q, W_K, W_V, W_O, qk, ov, mapped, pattern, mixed = ctx.saved_tensors
        heads, d_model, _ = W_Q.shape
        batch = len(keys)
        out = out.reshape(-1, ov.shape[1])
        d_ov = (mixed.t() @ out).view(heads, d_model, -1)
        d_mixed = _by_head(out @ ov.t(), batch, heads)
        d_pattern = torch.bmm(d_mixed, keys.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_pattern, pattern, -1, pattern.dtype)
        d_mapped = _by_row(torch.bmm(d_scores, keys), heads)
        d_qk = (rows.t() @ d_mapped).div_(d_model**0.5)
        d_qk = d_qk.view(d_model, heads, d_model).transpose(0, 1)
        d_queries = d_keys = None
        if ctx.needs_input_grad[0]:
            d_queries = (d_mapped @ qk.t()).view(batch, -1, d_model)
        if ctx.needs_input_grad[1]:
            d_keys = torch.bmm(d_scores.transpose(1, 2), mapped)
            d_keys.baddbmm_(pattern.transpose(1, 2), d_mixed)
        d_W_Q, d_W_K = torch.bmm(d_qk, W_K), torch.bmm(d_qk.transpose(1, 2), W_Q)
        d_W_V, d_W_O = torch.bmm(d_ov, W_O.transpose(1, 2)), torch.bmm(W_V.transpose(1, 2), d_ov)
        return d_queries, d_keys, None, d_W_Q, d_W_K, d_W_V, d_W_O


def _by_head(
    x: Float[Tensor, "batch_query head_d"], batch: int, heads: int
) -> Float[Tensor, "batch head_query d"]:
    if len(x) == batch:  # one query
        return x.view(batch, heads, -1)
    d = x.shape[1] // heads
    return x.view(batch, -1, heads, d).transpose(1, 2).reshape(batch, -1, d)


def _by_row(
    x: Float[Tensor, "batch head_query d"], heads: int
) -> Float[Tensor, "batch_query head_d"]:
    batch, rows, d = x.shape
    if rows == heads:  # one query
        return x.view(batch, -1)
    return x.view(batch, heads, -1, d).transpose(1, 2).reshape(-1, heads * d)


class Attention(Layer):
    """Heads as wide as a token: W_Q, W_K, W_V [head, d_model, d_head], W_O [head, d_head, d_out].

    Args:
        tied_to: the layer whose weights this one uses, or None if it has its own.
    """

    def __init__(self, n_heads: int, d_model: int, d_out: int, tied_to: "Attention | None") -> None:
        super().__init__()
        self.n_heads, self.d_model = n_heads, d_model
        self._tied_to = (tied_to,)  # in a tuple, so that its weights are not listed twice
        if tied_to is None:
            for name in ("W_Q", "W_K", "W_V"):
                self.register_parameter(name, nn.Parameter(_empty(n_heads, d_model, d_model)))
            self.W_O = nn.Parameter(_empty(n_heads, d_model, d_out))
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()

    @property
    def tied_to(self) -> "Attention | None":
        """The layer whose weights this one uses, or None if it has its own."""
        return self._tied_to[0]

    def weight(self, name: str) -> Float[Tensor, "head d_in d_out"]:
        """W_Q, W_K, W_V or W_O; `name` is the letter."""
        weight: Tensor = getattr(self.tied_to or self, f"W_{name}")
        return weight

    def qk(self) -> Float[Tensor, "head d_query d_key"]:
        """W_Q W_K^T / sqrt(d_head): what scores a key against a query."""
        return self.weight("Q") @ self.weight("K").transpose(1, 2) / self.d_model**0.5

    def ov(self) -> Float[Tensor, "head d_key d_out"]:
        """W_V W_O: what a head writes when it attends to a key."""
        return self.weight("V") @ self.weight("O")

    def forward(
        self,
        queries: Float[Tensor, "batch query d_model"],
        keys: Float[Tensor, "batch key d_model"],
        mask_bias: Float[Tensor, "query key"] | None,
    ) -> Float[Tensor, "batch query d_out"]:
        """The output of all heads, summed, for each query.

        Args:
            mask_bias: added to the scores; -inf where a query may not attend to a key.
        """
        q = self.hook_q(self._project(queries, "Q"))
        k = self.hook_k(self._project(keys, "K"))
        v = self.hook_v(self._project(keys, "V"))
        scores = torch.einsum("bqhk,bshk->bhqs", q, k) / self.d_model**0.5
        if mask_bias is not None:
            scores = scores + mask_bias
        scores = self.hook_attn_scores(scores)
        pattern = self.hook_pattern(scores.softmax(-1))
        z = self.hook_z(torch.einsum("bhqs,bshk->bqhk", pattern, v))
        result = torch.einsum("bqhk,hko->bqho", z, self.weight("O"))
        return self.hook_result(result).sum(2)

    def factored(
        self, queries: Tensor, keys: Tensor, mask_bias: Tensor | None
    ) -> Float[Tensor, "batch query d_out"]:
        """What `forward` returns, by a faster form that calls no hook."""
        weights = [self.weight(name) for name in "QKVO"]
        out: Tensor = FactoredAttention.apply(queries, keys, mask_bias, *weights)
        return out

    def batch_last(
        self,
        queries: Float[Tensor, "d_model query batch"],
        keys: Float[Tensor, "d_model key batch"],
        mask_bias: Float[Tensor, "query key"] | None,
    ) -> Float[Tensor, "d_out query batch"]:
        """As `factored`, with the batch as the last axis, for `torch.compile`.

        A sum over the few entries of a token then becomes a loop over the batch, which is faster
        than a small matrix product for each sequence. Without the compiler it is much slower.
        """
        _, n, batch = queries.shape
        qk = self.qk().transpose(1, 2).flatten(0, 1)  # [head_d, d_model]
        mapped = (qk @ queries.flatten(1)).view(self.n_heads, -1, n, 1, batch)
        scores = (mapped * keys.unsqueeze(1)).sum(1)  # [head, query, key, batch]
        if mask_bias is not None:
            scores = scores + mask_bias.unsqueeze(2)
        pattern = scores.softmax(2)
        mixed = (pattern.unsqueeze(1) * keys.unsqueeze(1)).sum(3)  # [head, d, query, batch]
        return (self.ov().flatten(0, 1).t() @ mixed.view(-1, n * batch)).view(-1, n, batch)

    def _project(self, tokens: Tensor, name: str) -> Float[Tensor, "batch pos head d_head"]:
        return torch.einsum("bpd,hdk->bphk", tokens, self.weight(name))


class Block(Layer):
    """A layer, as TransformerLens names it: attention is all that it has."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.attn = attn

    def forward(
        self, queries: Tensor, keys: Tensor, mask_bias: Tensor | None
    ) -> Float[Tensor, "batch query d_out"]:
        """Same arguments and result as `Attention.forward`."""
        out: Tensor = self.attn(queries, keys, mask_bias)
        return out


class InContextAttention(Root):
    """The model. Its initial weights are drawn from `generator` in the published order.

    Hook names are `blocks.{layer}.attn.hook_*` as in TransformerLens, weights
    `blocks.{layer}.attn.W_*` and, in a stack, `W_read` [d_model, 1].
    """

    @torch.inference_mode(False)  # whatever mode the caller is in, the weights can be trained
    def __init__(self, settings: ModelSettings, d: int, generator: torch.Generator) -> None:
        super().__init__()
        self.settings, self.d_model = settings, d + 1
        stack = settings.stack
        d_out = self.d_model if stack else 1
        layers: list[Attention] = []
        for _ in range(settings.n_layers):
            tied_to = layers[0] if layers and stack and stack.tied else None
            layers.append(Attention(settings.n_heads, self.d_model, d_out, tied_to))
        self.blocks = nn.ModuleList(Block(layer) for layer in layers)
        self.layers = tuple(layers)
        self.W_read = nn.Parameter(_empty(self.d_model, 1)) if stack else None
        self._init_weights(generator)
        self.setup()
        self._parts = tuple(self.modules())

    def _init_weights(self, generator: torch.Generator) -> None:
        heads, d_model = self.settings.n_heads, self.d_model
        for layer in self.layers:
            if layer.tied_to is not None:
                continue
            for name in "QKV":
                drawn = _linear(heads * d_model, d_model, generator).unflatten(0, (heads, d_model))
                layer.weight(name).data.copy_(drawn.transpose(1, 2))
            drawn = _linear(layer.weight("O").shape[2], heads * d_model, generator)
            layer.weight("O").data.copy_(drawn.unflatten(1, (heads, d_model)).permute(1, 2, 0))
            _shrink(layer, self.settings.init)
        if self.W_read is not None:
            self.W_read.data.copy_(_linear(1, d_model, generator).T)

    def forward(
        self,
        z: Float[Tensor, "batch example d_model"],
        z_q: Float[Tensor, "batch d_model"],
        lengths: Sequence[int] | None = None,
        factored: bool = False,
    ) -> Float[Tensor, "batch length"]:
        """Predictions of y_q from the first `lengths` examples each, by default from all.

        Args:
            factored: compute no activation that nobody asks for. It is for training, and takes
                effect only while no module in the model has a hook.
        """
        factored = factored and not has_hooks(self._parts)
        narrow = self.d_model <= NARROW and lengths is None
        if factored and narrow and torch.compiler.is_compiling():
            return self._batch_last(z, z_q)
        query, mask_bias = z_q.unsqueeze(1), None
        if lengths is not None:
            query = query.expand(-1, len(lengths), -1)
            mask_bias = _mask_bias(lengths, z.shape[1], z)
        *others, last = self.layers if factored else self.blocks
        attend: Callable[..., Tensor] = Attention.factored if factored else Block.__call__
        for layer in others:
            rows = torch.cat([z[:, 1:], query], 1)
            out = F.pad(attend(layer, rows, z, self._causal(z, mask_bias)), (0, 0, 1, 0))
            z, query = self._add(z, out[:, : z.shape[1]]), self._add(query, out[:, z.shape[1] :])
        out = attend(last, query, z, mask_bias)
        if self.W_read is not None:
            out = self._add(query, out) @ self.W_read
        return out.squeeze(2)

    def _batch_last(self, z: Tensor, z_q: Tensor) -> Float[Tensor, "batch length"]:
        """What `forward` returns for all examples, the batch being the last axis within."""
        tokens = torch.cat([z.permute(2, 1, 0), z_q.t().unsqueeze(1)], 1)  # [d_model, pos, batch]
        n = tokens.shape[1] - 1
        for layer in self.layers[:-1]:
            causal = _mask_bias(range(1, n + 1), n, z)
            out = layer.batch_last(tokens[:, 1:], tokens[:, :-1], causal)
            tokens = self._add(tokens, F.pad(out, (0, 0, 1, 0)))
        out = self.layers[-1].batch_last(tokens[:, -1:], tokens[:, :-1], None)
        if self.W_read is not None:
            out = self.W_read.t() @ self._add(tokens[:, -1:], out).flatten(1)
        return out.view(-1, 1)

    def _causal(self, z: Tensor, mask_bias: Tensor | None) -> Float[Tensor, "query example"]:
        """The mask of all examples but the first, and then of z_q.

        Args:
            mask_bias: that of the rows of z_q; None if they see all examples.
        """
        n = z.shape[1]
        of_query = z.new_zeros(1, n) if mask_bias is None else mask_bias
        return torch.cat([_mask_bias(range(1, n), n, z), of_query])

    def _add(self, before: Tensor, out: Tensor) -> Tensor:
        assert self.settings.stack is not None
        return before + out if self.settings.stack.residual else out


def _mask_bias(lengths: Sequence[int], n: int, like: Tensor) -> Float[Tensor, "length example"]:
    """A row for each length: 0 for so many of `n` examples from the first on, -inf for the others.

    Args:
        like: a tensor of the same type, on the same device.
    """
    limits = torch.tensor(lengths, device=like.device).unsqueeze(1)
    unseen = torch.arange(n, device=like.device) >= limits
    return like.new_zeros(unseen.shape).masked_fill(unseen, -torch.inf)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _linear(n_out: int, n_in: int, generator: torch.Generator) -> Float[Tensor, "n_out n_in"]:
    """The initial weight of PyTorch's `Linear`: uniform within 1 / sqrt(n_in)."""
    return nn.init.kaiming_uniform_(_empty(n_out, n_in), a=math.sqrt(5), generator=generator)


def _shrink(layer: Attention, init: str) -> None:
    """Set the weights to small identities that `init` names."""
    if init == "random":
        return
    identity = torch.eye(layer.d_model, dtype=torch.float32, device="cpu")
    identity *= SMALL_QK if init == "small_id_qk" else SMALL
    for name in "QKV" if init == "small_id" else "QK":
        layer.weight(name).data.copy_(identity)  # for every head
    if init == "oppo_small_id":
        layer.weight("Q").data[layer.n_heads // 2 :].neg_()


def build(
    settings: ModelSettings, data: DataSettings, generator: torch.Generator
) -> InContextAttention:
    """The model on the CPU, in float32, with initial weights from `generator`."""
    return InContextAttention(settings, data.d, generator)
