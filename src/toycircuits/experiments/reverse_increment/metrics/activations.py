"""The activations that all measurements read."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toycircuits.core.transformer import Transformer

Activations: TypeAlias = Mapping[str, Tensor]  # by hook name, and "logits"
HOOKS = ("attn.hook_pattern", "hook_resid_post", "hook_mlp_out")


def activations(model: Transformer, inputs: Int[Tensor, "string pos"]) -> dict[str, Tensor]:
    """Attention patterns, residual streams after each layer, MLP outputs and logits.

    Each has only the rows at which the model predicts the answer; of a pattern, these queries.
    """
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith(HOOKS))
    rows = slice(inputs.shape[1] // 2, None)
    cut = {name: x[:, :, rows] if "pattern" in name else x[:, rows] for name, x in cache.items()}
    return {"logits": logits[:, rows], **cut}


def last_resid(acts: Activations) -> Float[Tensor, "string symbol d_model"]:
    """The residual stream after the last layer."""
    return [x for name, x in acts.items() if name.endswith("resid_post")][-1]
