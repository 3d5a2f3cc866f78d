"""How loss and accuracy change when attention patterns or value vectors are replaced."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.interventions import UNABLATED, Ablation, ablated, mean_activations
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.list_copy.task import (
    POSITIONS,
    DataSettings,
    TrainSettings,
    accuracies,
    evaluation_lists,
    list_row,
    scored_positions,
    written,
)

# `plan` fills in the layer ("{}").
KINDS = (
    Ablation("pattern", "blocks.{}.attn.hook_attn_scores", "uniform"),
    Ablation("pattern", "blocks.{}.attn.hook_pattern", "mean"),
    Ablation("value", "blocks.{}.attn.hook_v", "zero"),
)
Step = tuple[dict[str, str | int], list[Ablation]]


class AblateSettings(Settings):
    """What to evaluate on.

    Attributes:
        sample: one list that gets rows of its own, beside those of the mean over many lists.
        mean_lists: number of training lists over which mean patterns are taken; null takes them
            over the lists that results are over.
    """

    sample: tuple[int, int]
    mean_lists: int | None = Field(ge=1)

    def check(self, data: DataSettings, train: TrainSettings) -> None:
        """Raise an `InputError` for a sample outside the task, or too few training lists."""
        list_row(self.sample, data, "ablate.sample")
        if self.mean_lists is not None and self.mean_lists > (n_train := train.n_train(data)):
            allowed = f"allowed is at most {n_train}"
            raise InputError(f"ablate.mean_lists: found {self.mean_lists}; {allowed}")


def plan(n_layers: int, n_heads: int) -> list[Step]:
    """All steps: the ablations to apply at once, with the columns that name them.

    The first step ablates nothing. Then each kind of `KINDS` ablates every head of every layer by
    itself, and finally all heads of all layers.

    >>> [step[0]["layer"] for step in plan(n_layers=2, n_heads=1)]
    ['none', 0, 1, 'all', 0, 1, 'all', 0, 1, 'all']
    """
    steps: list[Step] = [({**UNABLATED}, [])]
    for kind in KINDS:
        layers = [replace(kind, name=kind.name.format(i), layer=i) for i in range(n_layers)]
        single = [replace(layer, head=head) for layer in layers for head in range(n_heads)]
        steps += [(ablation.columns, [ablation]) for ablation in single]
        steps.append((kind.columns, layers))
    return steps


def score(model: Transformer, lists: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " list"]]:
    """Loss and accuracies of each list, and the loss of each prediction that counts.

    The losses (nats) are those of the given sequence. In the layout `next_token`, the accuracy is
    that of a model that reads its own predictions.
    """
    inputs, targets = lists["inputs"], lists["targets"]
    scored = scored_positions(targets)
    logits = model(inputs)[:, list(scored)].transpose(1, 2)
    losses = F.cross_entropy(logits, targets, reduction="none").double().unbind(1)
    names = [f"loss_at_{POSITIONS[position]}" for position in scored]
    by_position = dict(zip(names, losses, strict=True))
    mean = torch.stack(losses).mean(0)
    return {"loss": mean, **accuracies(written(model, **lists), **lists), **by_position}


def reference(data: Mapping[str, Tensor], settings: AblateSettings) -> Int[Tensor, "list pos"]:
    """Inputs of the lists over which mean patterns are taken."""
    if settings.mean_lists is None:
        return evaluation_lists(data)[1]["inputs"]
    return data["inputs"][: settings.mean_lists]


def ablate(
    model: Transformer,
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: AblateSettings,
) -> pd.DataFrame:
    """One row for each ablation and subset: the sample, or the lists that results are over.

    `loss` (nats) is the mean over the predictions; `loss_at_d1` and so on are the losses of the
    predictions at each position.
    """
    row = list_row(settings.sample, task, "ablate.sample")
    sample = {name: data[f"all_{name}"][row : row + 1] for name in ("inputs", "targets")}
    subsets = dict([(str(settings.sample), sample), evaluation_lists(data)])
    means_over = reference(data, settings)
    steps = plan(model.settings.n_layers, model.settings.n_heads)
    mean_ablated = {a.name for _, ablations in steps for a in ablations if a.method == "mean"}
    means = mean_activations(model, lambda: model(means_over), sorted(mean_ablated))
    rows: list[dict[str, str | int | float]] = []
    for columns, ablations in steps:
        with torch.no_grad(), ablated(model, ablations, means):
            for name, lists in subsets.items():
                scores = {
                    key: by_list.mean().item() for key, by_list in score(model, lists).items()
                }
                rows.append({**columns, "subset": name, **scores})
    return pd.DataFrame(rows)
