"""The one-layer transformer of the grokking study, without LayerNorm and biases."""

from typing import Literal

import torch
from pydantic import Field

from toycircuits.core.config import Settings
from toycircuits.core.transformer import Transformer, TransformerSettings
from toycircuits.experiments.modular_arithmetic.task import DataSettings

# Causal. Rows: query, columns: key.
#            a    b    =
MASK = (
    "1..",  # a
    "11.",  # b
    "111",  # =
)


class ModelSettings(Settings):
    """Width of the model; the rest follows from the task."""

    # The analysis reads one layer's neurons and adds no LayerNorm or bias on the way to the logits.
    n_layers: Literal[1]
    n_heads: int = Field(ge=1)
    d_model: int = Field(ge=1)
    d_head: int = Field(ge=1)
    d_mlp: int = Field(ge=1)
    act_fn: Literal["relu", "gelu"]
    normalization: None
    use_bias: Literal[False]


def build(settings: ModelSettings, data: DataSettings, generator: torch.Generator) -> Transformer:
    """The model with initial weights drawn from `generator`."""
    from_task = {"d_vocab": data.modulus + 1, "d_vocab_out": data.modulus, "masks": [MASK]}
    from_task["fixed_tokens"] = [None, None, data.modulus]  # a b =
    nothing_frozen = {"freeze_W_V": False, "freeze_W_O": False}
    shape = settings.model_dump() | from_task | nothing_frozen
    return Transformer(TransformerSettings.parse(shape, "model"), generator)
