"""One attention layer with one head."""

from typing import Any

import torch
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.transformer import Transformer, TransformerSettings

# Rows: query, columns: key. Both positions attend to the first alone, so the head has to copy it.
MASK = ("1.", "1.")


class ModelSettings(Settings):
    """The width of the model."""

    d_model: int = Field(ge=1)


def build(settings: ModelSettings, data: Any, generator: torch.Generator) -> Transformer:
    """The model with initial weights drawn from `generator`."""
    shape = {
        **{"n_layers": 1, "n_heads": 1, "d_model": settings.d_model, "d_head": settings.d_model},
        **{"d_mlp": None, "act_fn": None, "normalization": None, "use_bias": False},
        **{"freeze_W_V": False, "freeze_W_O": False, "masks": [MASK]},
        **{"d_vocab": data.n_tokens, "d_vocab_out": data.n_tokens},
    }
    return Transformer(TransformerSettings.parse(shape, "model"), generator)
