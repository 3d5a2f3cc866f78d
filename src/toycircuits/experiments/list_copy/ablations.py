"""What copying loses when attention patterns or value vectors are replaced, layer by layer."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from toycircuits.config import InputError, Settings
from toycircuits.experiments.list_copy.task import (
    POSITIONS,
    UNSCORED,
    DataSettings,
    copied,
    list_row,
    scored_positions,
)
from toycircuits.interventions import Ablation, ablated, mean_activations
from toycircuits.transformer import Transformer

# The name's layer is filled in by `plan`.
KINDS = (
    Ablation("pattern", "blocks.{}.attn.hook_attn_scores", "uniform"),
    Ablation("pattern", "blocks.{}.attn.hook_pattern", "mean"),
    Ablation("value", "blocks.{}.attn.hook_v", "zero"),
)
UNABLATED = {"component": "none", "layer": "none", "head": "none", "method": "none"}
Step = tuple[dict[str, str | int], list[Ablation]]


class AblateSettings(Settings):
    """What to evaluate on.

    Attributes:
        sample: the list reported by itself, beside the mean over all lists.
        mean_lists: how many of the training lists the mean patterns are taken over.
    """

    sample: tuple[int, int]
    mean_lists: int = Field(ge=1)


def plan(n_layers: int, n_heads: int) -> list[Step]:
    """The ablations to make, each with the columns that name it.

    Nothing; then each kind for every head of every layer by itself; then for all of them at once.

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


def score(
    model: Transformer, data: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "list pos"], Bool[Tensor, " list"]]:
    """Loss of each prediction that counts, over all lists, and whether each list is copied.

    The loss is that of the whole sequence given; copying feeds the model its own predictions.
    """
    targets = data["all_targets"]
    logits = model(data["all_inputs"]).transpose(1, 2)
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=UNSCORED)
    return losses[:, list(scored_positions(targets))], copied(model, data["all_inputs"])


def ablate(
    model: Transformer,
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: AblateSettings,
) -> pd.DataFrame:
    """One row an ablation and subset (the sample list, or all lists).

    Beside `loss` (nats, the mean over the predictions) and `accuracy` (exact match of greedy
    generation), `loss_at_d1` and so on are the losses of the predictions made at each position.

    Raises:
        InputError: the sample is no list of the task, or there are too few training lists.
    """
    if settings.mean_lists > len(data["inputs"]):
        found, allowed = settings.mean_lists, len(data["inputs"])
        raise InputError(f"ablate.mean_lists: found {found}; allowed is at most {allowed}")
    row = list_row(settings.sample, task, "ablate.sample")
    subsets = {str(settings.sample): slice(row, row + 1), "all lists": slice(None)}
    steps = plan(model.settings.n_layers, model.settings.n_heads)
    names = {one.name for _, ablations in steps for one in ablations if one.method == "mean"}
    means = mean_activations(
        model, lambda: model(data["inputs"][: settings.mean_lists]), sorted(names)
    )
    positions = [f"loss_at_{POSITIONS[pos]}" for pos in scored_positions(data["all_targets"])]
    rows: list[dict[str, str | int | float]] = []
    for columns, ablations in steps:
        with torch.no_grad(), ablated(model, ablations, means):
            losses, correct = score(model, data)
        for name, part in subsets.items():
            by_position = losses[part].double().mean(0)
            values = {"loss": by_position.mean(), "accuracy": correct[part].double().mean()}
            values |= dict(zip(positions, by_position, strict=True))
            rows.append(
                {**columns, "subset": name} | {key: value.item() for key, value in values.items()}
            )
    return pd.DataFrame(rows)
