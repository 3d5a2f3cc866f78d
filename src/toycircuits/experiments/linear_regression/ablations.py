"""What each head is worth: its output zeroed or set to its mean, its attention made uniform."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.interventions import UNABLATED, Ablation, ablated, mean_activations
from toycircuits.experiments.linear_regression.model import InContextAttention
from toycircuits.experiments.linear_regression.task import DataSettings

WHOLE_MODEL = UNABLATED | {"layer": "", "head": ""}  # no layer and no head is meant


class AblateSettings(Settings):
    """On what to ablate.

    Attributes:
        sequences: how many of the sequences to validate on.
    """

    sequences: int = Field(ge=2)

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for more sequences than there are."""
        if self.sequences > data.n_validation:
            allowed = f"at most data.n_validation, {data.n_validation}"
            raise InputError(f"ablate.sequences: found {self.sequences}; allowed is {allowed}")


def ablations_of(n_layers: int, n_heads: int) -> Iterator[Ablation]:
    """Every ablation.

    >>> [(a.layer, a.head, a.component, a.method) for a in ablations_of(1, 1)]
    [(0, 0, 'z', 'zero'), (0, 0, 'z', 'mean'), (0, 0, 'pattern', 'uniform')]
    """
    for layer in range(n_layers):
        point = f"blocks.{layer}.attn"
        for head in range(n_heads):
            yield Ablation("z", f"{point}.hook_z", "zero", layer, head)
            yield Ablation("z", f"{point}.hook_z", "mean", layer, head)
            yield Ablation("pattern", f"{point}.hook_attn_scores", "uniform", layer, head)


def ablate(
    model: InContextAttention,
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: AblateSettings,
) -> pd.DataFrame:
    """Loss and accuracy of the model, and after each ablation.

    Loss is the mean squared error. Accuracy is the share of the mean square of y_q that the
    predictions explain: R^2 about zero, which is the mean of y_q. It is 0 for predicting zero, and
    negative for worse predictions.
    """
    z, z_q, y_q = (data[name][: settings.sequences] for name in ("z", "z_q", "y_q"))
    ablations = list(ablations_of(len(model.layers), model.settings.n_heads))
    names = {ablation.name for ablation in ablations if ablation.method == "mean"}
    means = mean_activations(model, lambda: model(z, z_q), names)
    rows = []
    for ablation in [None, *ablations]:
        with torch.no_grad(), ablated(model, [ablation] if ablation else [], means):
            error = (model(z, z_q)[:, 0] - y_q).double().pow(2).mean().item()
        explained = 1 - error / y_q.double().pow(2).mean().item()
        columns = ablation.columns if ablation else WHOLE_MODEL
        rows.append(columns | {"loss": error, "accuracy": explained})
    return pd.DataFrame(rows)
