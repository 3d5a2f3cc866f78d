"""The small causal transformer that reverses and increments."""

from typing import Literal

import torch
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.transformer import Transformer, TransformerSettings
from toycircuits.experiments.reverse_increment.task import DataSettings


class ModelSettings(Settings):
    """Size of the model. Vocabulary and number of positions follow from the task."""

    n_layers: int = Field(ge=1, le=64)
    n_heads: int = Field(ge=1, le=256)
    d_model: int = Field(ge=1, le=65536)
    d_head: int = Field(ge=1, le=65536)
    d_mlp: int = Field(ge=1, le=262144)
    act_fn: Literal["relu", "gelu"]
    normalization: Literal["LN"] | None
    use_bias: bool


def causal_mask(n_ctx: int) -> tuple[str, ...]:
    """The mask in which a query sees itself and all positions before it.

    >>> causal_mask(3)
    ('1..', '11.', '111')
    """
    return tuple("1" * (query + 1) + "." * (n_ctx - query - 1) for query in range(n_ctx))


def build(settings: ModelSettings, data: DataSettings, generator: torch.Generator) -> Transformer:
    """The model with initial weights from `generator`; its tokens are the symbols and BOS."""
    from_task = {"d_vocab": data.n_symbols + 1, "d_vocab_out": data.n_symbols + 1}
    nothing_frozen = {"freeze_W_V": False, "freeze_W_O": False}
    rest = [None] * (2 * data.length - 1)
    mask = {"masks": [causal_mask(2 * data.length)], "fixed_tokens": [data.n_symbols, *rest]}
    shape = settings.model_dump() | from_task | nothing_frozen | mask
    return Transformer(TransformerSettings.parse(shape, "model"), generator)
