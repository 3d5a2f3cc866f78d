"""The activations that several measurements read."""

import torch
from jaxtyping import Int
from torch import Tensor

from toycircuits.core.transformer import Transformer

HOOKS = ("attn.hook_pattern", "hook_resid_post")


def activations(model: Transformer, inputs: Int[Tensor, "list pos"]) -> dict[str, Tensor]:
    """Attention patterns and residual streams after each layer, by hook name."""
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith(HOOKS))
    return dict(cache)
