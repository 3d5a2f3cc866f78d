"""The layers of a transformer as TransformerLens writes them: parameters, hook points, formulas.

Hook names and the names of parameters are those of TransformerLens's `HookedTransformer` (removed
in TransformerLens 4). A hook may change its activation in place. The change affects what is
computed from this activation, and nothing else, because hooks are given copies. Without hooks,
nothing is copied.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformer_lens import HookedRootModule, hook_points

if TYPE_CHECKING:  # that module imports this one
    from toycircuits.core.transformer import TransformerSettings

LAYER_NORM_EPS = 1e-5
GLOBAL_HOOKS = tuple(f"_global_{kind}_hooks" for kind in ("forward", "forward_pre", "backward"))


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether one of `modules` has a hook: a function that sees its input, output or gradient.

    Hooks that PyTorch calls on all modules count too.
    """
    return any(getattr(torch_module, name) for name in GLOBAL_HOOKS) or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def weight(*shape: int) -> nn.Parameter:
    """A parameter without values, float32 on the CPU whatever torch's defaults are."""
    return nn.Parameter(torch.empty(shape, dtype=torch.float32, device="cpu"))


def bias(*shape: int) -> nn.Parameter:
    """A parameter of zeros, float32 on the CPU whatever torch's defaults are."""
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32, device="cpu"))


def _for_hooks(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the inputs of a module with hooks, which may change them in place."""
    if not has_hooks((module,)):
        return inputs
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


class Layer(nn.Module):
    """A module whose hooks see copies, so that they can change them in place."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, with the hooks of this module."""
        return super().__call__(*_for_hooks(self, args), **kwargs)

    def own(self, out: Tensor) -> Tensor:
        """A copy of `out` for hooks of this module, where other modules hold `out` too."""
        return out.clone() if has_hooks((self,)) else out


class Root(HookedRootModule):
    """A whole model; its hooks see copies of its inputs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, with the hooks of the model."""
        return super().__call__(*_for_hooks(self, args), **kwargs)


class HookPoint(hook_points.HookPoint):
    """TransformerLens's hook point; its hooks see a copy, so that they can change it in place."""

    def __call__(self, x: Tensor) -> Any:
        """`x` after the hooks; `x` itself if there are none."""
        return super().__call__(x.clone()) if has_hooks((self,)) else x

    def forward(self, x: Tensor) -> Tensor:
        """`x`; a second copy if hooks watch gradients, which PyTorch forbids to edit in place."""
        watched = self._backward_hooks or self._backward_pre_hooks
        return x.clone() if watched or torch_module._global_backward_hooks else x


class Identity(Layer):
    """Takes the place of LayerNorm in a model without it."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return self.own(x)


class LayerNorm(Layer):
    """LayerNorm over d_model, with TransformerLens's hooks and parameter names."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model, dtype=torch.float32, device="cpu"))
        self.b = bias(d_model)
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """`x` minus its mean, divided by its standard deviation, times w, plus b."""
        x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + LAYER_NORM_EPS).sqrt())
        return self.own(self.hook_normalized(x / scale * self.w + self.b))


def normalization(settings: "TransformerSettings") -> LayerNorm | Identity:
    """What stands before attention, MLP and unembedding."""
    return LayerNorm(settings.d_model) if settings.normalization else Identity()


class Embed(Layer):
    """Token embedding, W_E [d_vocab, d_model]."""

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__()
        self.W_E = weight(settings.d_vocab, settings.d_model)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The embedding of each token."""
        return F.embedding(tokens, self.W_E)


class PosEmbed(Layer):
    """Positional embedding, W_pos [n_ctx, d_model]."""

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__()
        self.W_pos = weight(settings.n_ctx, settings.d_model)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The embedding of each position, for every sequence; without hooks, a view of W_pos."""
        return self.own(self.W_pos[: tokens.shape[1]].expand(len(tokens), -1, -1))


class Unembed(Layer):
    """Unembedding, W_U [d_model, d_vocab_out] and b_U [d_vocab_out]."""

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__()
        self.W_U = weight(settings.d_model, settings.d_vocab_out)
        self.b_U = bias(settings.d_vocab_out)

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_vocab_out"]:
        """Logits."""
        return resid @ self.W_U + self.b_U


class Attention(Layer):
    """Multi-head attention: W_Q, W_K, W_V [head, d_model, d_head], W_O [head, d_head, d_model].

    `hook_result`, what each head writes, is None until a flag of lens_hooks.py turns it on.
    """

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__()
        heads, d_model, d_head = settings.n_heads, settings.d_model, settings.d_head
        self.W_Q, self.W_K = weight(heads, d_model, d_head), weight(heads, d_model, d_head)
        self.W_V, self.W_O = weight(heads, d_model, d_head), weight(heads, d_head, d_model)
        self.b_Q, self.b_K = bias(heads, d_head), bias(heads, d_head)
        self.b_V, self.b_O = bias(heads, d_head), bias(d_model)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z = HookPoint()
        self.hook_result: HookPoint | None = None

    def forward(
        self,
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "batch pos *head d_model"],
        value_input: Float[Tensor, "batch pos *head d_model"],
        forbidden: Bool[Tensor, "query key"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """What attention adds to the residual stream.

        Args:
            query_input, key_input, value_input: [batch, pos, d_model] if all heads read the same,
                [batch, pos, head, d_model] if each head has an input of its own.
            forbidden: True where a query may not attend to a key. The pattern of a query without
                any key is a row of zeros.
        """
        q: Tensor = self.hook_q(_project(query_input, self.W_Q) + self.b_Q)
        k: Tensor = self.hook_k(_project(key_input, self.W_K) + self.b_K)
        v: Tensor = self.hook_v(_project(value_input, self.W_V) + self.b_V)
        scores = (q / self.W_Q.shape[2] ** 0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        scores = self.hook_attn_scores(scores.masked_fill(forbidden, -torch.inf))
        blind = forbidden.all(1, keepdim=True)
        pattern = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
        pattern = self.hook_pattern(pattern)
        z: Tensor = self.hook_z((pattern @ v.transpose(1, 2)).transpose(1, 2))
        if self.hook_result is None:
            return z.flatten(2) @ self.W_O.flatten(0, 1) + self.b_O
        result: Tensor = self.hook_result(torch.einsum("bphk,hkd->bphd", z, self.W_O))
        return result.sum(2) + self.b_O


def _project(
    x: Float[Tensor, "batch pos *head d_model"], weight: Float[Tensor, "head d_model d_head"]
) -> Float[Tensor, "batch pos head d_head"]:
    """Queries, keys or values."""
    if x.ndim == 4:
        return torch.einsum("bphd,hdk->bphk", x, weight)
    heads, d_model, d_head = weight.shape
    return (x @ weight.transpose(0, 1).reshape(d_model, -1)).unflatten(-1, (heads, d_head))


class MLP(Layer):
    """Two-layer MLP: W_in [d_model, d_mlp], W_out [d_mlp, d_model]."""

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__()
        assert settings.d_mlp is not None
        self.use_bias = settings.use_bias
        self.W_in, self.b_in = weight(settings.d_model, settings.d_mlp), bias(settings.d_mlp)
        self.W_out, self.b_out = weight(settings.d_mlp, settings.d_model), bias(settings.d_model)
        self.activation = F.relu if settings.act_fn == "relu" else F.gelu
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the residual stream."""
        pre = self.hook_pre(x @ self.W_in + self.b_in)
        post: Tensor = self.hook_post(self.activation(pre))
        return post @ self.W_out + self.b_out


class Block(Layer):
    """One layer: attention and, where there is one, an MLP, each added to the residual stream.

    These hook points are None until a flag of lens_hooks.py turns them on: `hook_attn_in` (the
    residual stream that each head reads), `hook_q_input`, `hook_k_input` and `hook_v_input` (those
    that its queries, keys and values are made of), and `hook_mlp_in` (the one that the MLP reads).
    """

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__()
        self.n_heads = settings.n_heads
        self.hook_resid_pre = HookPoint()
        self.hook_attn_in: HookPoint | None = None
        self.hook_q_input: HookPoint | None = None
        self.hook_k_input: HookPoint | None = None
        self.hook_v_input: HookPoint | None = None
        self.ln1 = normalization(settings)
        self.attn = Attention(settings)
        self.hook_attn_out = HookPoint()
        self.mlp: MLP | None = None
        if settings.d_mlp is not None:
            self.hook_resid_mid = HookPoint()
            self.hook_mlp_in: HookPoint | None = None
            self.ln2 = normalization(settings)
            self.mlp = MLP(settings)
            self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"], forbidden: Bool[Tensor, "query key"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this layer.

        Args:
            resid: the residual stream before this layer.
            forbidden: True where a query may not attend to a key.
        """
        resid = self.hook_resid_pre(resid)
        x = resid + self.hook_attn_out(self.attn(*self._attention_inputs(resid), forbidden))
        if self.mlp is not None:
            x = self.hook_resid_mid(x)
            mlp_in = x if self.hook_mlp_in is None else self.hook_mlp_in(x)
            x = x + self.hook_mlp_out(self.mlp(self.ln2(mlp_in)))
        return self.own(self.hook_resid_post(x))

    def _attention_inputs(self, resid: Tensor) -> list[Tensor]:
        """Normalized inputs of queries, keys and values."""
        split = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not any((*split, self.hook_attn_in)):
            return [self.ln1(resid)] * 3
        by_head = resid.unsqueeze(2).expand(-1, -1, self.n_heads, -1)
        shared = by_head if self.hook_attn_in is None else self.hook_attn_in(by_head)
        return [self.ln1(shared if hook is None else hook(by_head)) for hook in split]
