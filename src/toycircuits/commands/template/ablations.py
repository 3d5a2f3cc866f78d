"""What the head is worth."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from toycircuits.core.config import Settings
from toycircuits.core.interventions import Ablation, ablated


class AblateSettings(Settings):
    """Nothing to set."""


def ablate(
    model: Any, data: Mapping[str, Tensor], task: Any, settings: AblateSettings
) -> pd.DataFrame:
    """Share of tokens that are repeated when the head's output is zeroed."""
    zero = Ablation("z", "blocks.0.attn.hook_z", "zero", 0, 0)
    with torch.no_grad(), ablated(model, [zero]):
        right = model(data["tokens"])[:, 1].argmax(-1) == data["tokens"][:, 0]
    return pd.DataFrame([zero.columns | {"accuracy": right.double().mean().item()}])
