"""What each part of the grokked network is worth: heads, attention patterns and the MLP."""

from collections.abc import Iterator, Mapping
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from toycircuits.core.config import Settings
from toycircuits.core.interventions import UNABLATED, Ablation, ablated, mean_activations
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic.task import (
    LAST,
    DataSettings,
    accuracy,
    cross_entropy,
)

WHOLE_MODEL = UNABLATED | {"layer": "", "head": ""}  # no layer and no head is meant


class AblateSettings(Settings):
    """Nothing to set: every component is ablated, over all pairs."""


def ablations_of(n_heads: int) -> Iterator[Ablation]:
    """Every ablation of the one layer.

    >>> [ablation.component for ablation in ablations_of(1)]
    ['z', 'z', 'pattern', 'pattern', 'attn_out', 'attn_out', 'mlp_out', 'mlp_out']
    """
    block = "blocks.0"
    zero_or_mean: tuple[Literal["zero"], Literal["mean"]] = ("zero", "mean")
    for head in range(n_heads):
        for method in zero_or_mean:
            yield Ablation("z", f"{block}.attn.hook_z", method, 0, head)
        yield Ablation("pattern", f"{block}.attn.hook_pattern", "mean", 0, head)
        yield Ablation("pattern", f"{block}.attn.hook_attn_scores", "uniform", 0, head)
    for name in ("attn_out", "mlp_out"):
        for method in zero_or_mean:
            yield Ablation(name, f"{block}.hook_{name}", method, 0)


def ablate(
    model: Transformer, data: Mapping[str, Tensor], task: DataSettings, settings: AblateSettings
) -> pd.DataFrame:
    """Loss (nats) and accuracy on train and test pairs, of the model and after each ablation.

    Means are taken over all p^2 pairs.
    """
    tokens, labels = data["tokens"], data["labels"]
    ablations = list(ablations_of(model.settings.n_heads))
    means = mean_activations(
        model, lambda: model(tokens, read=(LAST,)), {ablation.name for ablation in ablations}
    )
    rows = []
    for ablation in [None, *ablations]:
        with torch.no_grad(), ablated(model, [ablation] if ablation else [], means):
            logits = model(tokens, read=(LAST,))[:, 0]
        for pairs in ("train", "test"):
            index = data[pairs]
            row = {
                **(ablation.columns if ablation else WHOLE_MODEL),
                "pairs": pairs,
                "loss": cross_entropy(logits[index], labels[index]).item(),
                "accuracy": accuracy(logits[index], labels[index]),
            }
            rows.append(row)
    return pd.DataFrame(rows)
