"""The hook points of a `Transformer` as TransformerLens's tools use them, and its configuration.

As in TransformerLens, some hook points are computed only if a flag is on. Adding a hook raises a
`KeyError` if its flag is off, or if the model has no such hook point. The message says which.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig
from transformer_lens.utilities import Slice

from toycircuits.core.layers import HookPoint
from toycircuits.core.lens_weights import TransformerWithWeights
from toycircuits.core.transformer import TransformerSettings

Hooked: TypeAlias = tuple[str, Callable[..., Any]]
Name: TypeAlias = str | Callable[[str], bool]  # of a hook point, or which names to choose

# Hook points that exist only if the flag is on.
FLAGS = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}
# TransformerLens 4 looks for these in `attn`; TransformerLens 2 had them in the block.
IN_ATTN = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in")
MLP_HOOKS = ("hook_resid_mid", "hook_mlp_in", "hook_mlp_out", ".mlp.", ".ln2.")


@dataclass(repr=False)
class LensConfig(TransformerLensConfig):
    """TransformerLens's description of a model, and attributes that only some of its tools read.

    Attributes:
        d_vocab_out: number of output tokens.
        attention_dir: "causal", or "bidirectional" if some query may attend to a later position.
        use_attn_in, use_hook_mlp_in: whether these hook points are computed, like
            `use_attn_result` and `use_split_qkv_input` of the base class.
    """

    d_vocab_out: int = -1
    attention_dir: str = "causal"
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False


def _config(settings: TransformerSettings) -> LensConfig:
    future = any(
        row[query + 1 :].count("1") for mask in settings.masks for query, row in enumerate(mask)
    )
    shared = ("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "d_vocab_out", "n_ctx")
    return LensConfig(
        **{name: getattr(settings, name) for name in shared},
        d_mlp=settings.d_mlp or 0,  # TransformerLens would put a size of its own in place of None
        act_fn=settings.act_fn or "none",
        attn_only=settings.d_mlp is None,
        normalization_type=settings.normalization,
        default_prepend_bos=False,
        attention_dir="bidirectional" if future else "causal",
        device="cpu",
    )


class _Activations(dict[str, Tensor]):
    """Activations by name. The `KeyError` of a missing name says why it is missing."""

    def __init__(self, explain: Callable[[str], str]) -> None:
        super().__init__()
        self.explain = explain

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(self.explain(name))


class TransformerWithFlags(TransformerWithWeights):
    """A transformer with TransformerLens's configuration and flags, which checks its hooks."""

    def __init__(self, settings: TransformerSettings, generator: torch.Generator) -> None:
        super().__init__(settings, generator)
        self._cfg = _config(settings)
        block: Any
        for block in self.blocks:
            # The block's output is the residual stream that the unembedding reads.
            block.hook_out_is_single_residual_stream = True

    @property
    def cfg(self) -> LensConfig:
        """TransformerLens's description of this model."""
        self._cfg.device = str(self.W_E.device)
        self._cfg.dtype = self.W_E.dtype
        return self._cfg

    def setup(self) -> None:
        """Name all modules, and give some hook points of a block a second name in `attn`."""
        super().setup()
        for name in [name for name in self.hook_dict if name.endswith(IN_ATTN)]:
            block, _, leaf = name.rpartition(".")
            for names in (self.hook_dict, self.mod_dict):
                names[f"{block}.attn.{leaf}"] = self.hook_dict[name]

    def set_use_attn_result(self, use: bool) -> None:
        """Compute `attn.hook_result`, what each head writes, [batch, pos, head, d_model]."""
        self._set("use_attn_result", use)

    def set_use_split_qkv_input(self, use: bool) -> None:
        """Compute `hook_q_input`, `hook_k_input` and `hook_v_input`.

        Each is a copy of the residual stream for each head, [batch, pos, head, d_model], from which
        the head computes its queries, keys or values.

        Raises:
            ValueError: `use_attn_in` is on.
        """
        if use and self._cfg.use_attn_in:
            raise ValueError("use_split_qkv_input: first call set_use_attn_in(False)")
        self._set("use_split_qkv_input", use)

    def set_use_attn_in(self, use: bool) -> None:
        """Compute `hook_attn_in`, the residual stream for each head, [batch, pos, head, d_model].

        Raises:
            ValueError: `use_split_qkv_input` is on.
        """
        if use and self._cfg.use_split_qkv_input:
            raise ValueError("use_attn_in: first call set_use_split_qkv_input(False)")
        self._set("use_attn_in", use)

    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Compute `hook_mlp_in`, the residual stream that the MLP reads, [batch, pos, d_model].

        Raises:
            ValueError: the model has no MLPs.
        """
        if use and self._cfg.attn_only:
            raise ValueError("use_hook_mlp_in: this model has no MLPs")
        if not self._cfg.attn_only:
            self._set("use_hook_mlp_in", use)

    def _set(self, flag: str, use: bool) -> None:
        """Make the hook points of `flag`, or remove them."""
        if getattr(self._cfg, flag) == use:
            return
        for layer in self._layers:
            for name in [name for name in FLAGS if FLAGS[name] == flag]:
                block = self._block(layer)
                owner = block.attn if name == "hook_result" else block
                setattr(owner, name, HookPoint().train(self.training) if use else None)
        setattr(self._cfg, flag, use)
        self.setup()

    def _why_absent(self, name: str) -> str:
        """A line that says why there is no activation `name`."""
        flag = FLAGS.get(name.rpartition(".")[2])
        if name in self.hook_dict:
            return f"{name}: is not in this cache, because names_filter left it out"
        if self._cfg.attn_only and any(part in name for part in MLP_HOOKS):
            return f"{name}: this model has no MLPs"
        if self._cfg.normalization_type is None and (".ln" in name or "ln_final" in name):
            return f"{name}: this model has no LayerNorm"
        if flag is not None and not getattr(self._cfg, flag):
            return f"{name}: is computed only after model.set_{flag}(True)"
        return f"{name}: this model has no such hook point"

    def _check_hook(self, name: str) -> None:
        """Raise a `KeyError` that says why, if there is no module of this name."""
        if name not in self.mod_dict:
            raise KeyError(self._why_absent(name))

    def add_hook(self, name: Name, *args: Any, **kwargs: Any) -> None:
        """As `HookedRootModule.add_hook`.

        Raises:
            KeyError: there is no such hook point, or a flag that it needs is off.
        """
        for each in self._hooks_to_add(name):
            super().add_hook(each, *args, **kwargs)

    def _enable_hook(self, name: Name, hook: Callable[..., Any], dir: Any) -> None:
        for each in self._hooks_to_add(name):
            super()._enable_hook(each, hook, dir)

    def _hooks_to_add(self, name: Name) -> list[str]:
        """`name` itself if it is text; otherwise one name of each hook point that it chooses."""
        if isinstance(name, str):
            self._check_hook(name)
            return [name]
        chosen: dict[nn.Module, str] = {}  # some hook points have two names
        for each, hook_point in self.hook_dict.items():
            if name(each):
                chosen.setdefault(hook_point, each)
        return [*chosen.values()]

    def get_caching_hooks(
        self, names_filter: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Tensor], list[Hooked], list[Hooked]]:
        """As `HookedRootModule.get_caching_hooks`.

        Raises:
            KeyError: a name in `names_filter` is no hook point, or its flag is off.
            ValueError: `pos_slice` is given, and TransformerLens would slice another axis of an
                activation than the positions.
        """
        names = [names_filter] if isinstance(names_filter, str) else names_filter
        if isinstance(names, Collection):
            for name in names:
                self._check_hook(name)
            names = [*names]
        if kwargs.get("cache") is None:
            kwargs["cache"] = _Activations(self._why_absent)
        cache, forward, backward = super().get_caching_hooks(names, *args, **kwargs)
        by_head = [name for name, _ in forward if name.endswith(IN_ATTN)]
        if by_head and Slice.unwrap(kwargs.get("pos_slice")).mode != "identity":
            text = f"TransformerLens would slice the heads of {by_head[0]}; leave it out"
            raise ValueError(f"pos_slice: {text} of names_filter")
        return cache, [*map(_by_name, forward)], [*map(_by_name, backward)]


def _by_name(hooked: Hooked) -> Hooked:
    """A hook that saves under the requested name. Some hook points have two names."""
    name, save = hooked

    def hook(x: Tensor, hook: nn.Module) -> None:
        save(x if hook.name == name else x.clone(), SimpleNamespace(name=name))

    return name, hook
