"""How held-out loss and accuracy change without a weight matrix or a component's output."""

from collections.abc import Iterator, Mapping

import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from toycircuits.core.config import Settings
from toycircuits.core.interventions import UNABLATED, Ablation, ablated, mean_activations
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.reverse_increment.task import (
    DataSettings,
    accuracies,
    answer_logits,
    cross_entropy,
    outputs,
    part,
)

WEIGHTS = {"W_out": "mlp.W_out", "W_O": "attn.W_O"}
OUTPUTS = ("mlp_out", "attn_out")


class AblateSettings(Settings):
    """The control of the zeroed matrices: the same number of random weights is zeroed instead.

    Attributes:
        control_draws: how often random weights are drawn, for each size of matrix.
        control_seed: seed of the draws.
    """

    control_draws: int = Field(ge=1, le=10_000)
    control_seed: int = Field(ge=0, lt=2**63)


def ablations_of(n_layers: int) -> Iterator[Ablation]:
    """Every ablation: whole weight matrices zeroed, and outputs replaced by their mean.

    >>> [(ablation.component, ablation.layer) for ablation in ablations_of(1)]
    [('W_out', 0), ('W_O', 0), ('mlp_out', 0), ('attn_out', 0)]
    """
    for component, name in WEIGHTS.items():
        for layer in range(n_layers):
            yield Ablation(component, f"blocks.{layer}.{name}", "weight_zero", layer)
    for component in OUTPUTS:
        for layer in range(n_layers):
            yield Ablation(component, f"blocks.{layer}.hook_{component}", "mean", layer)


def scores(logits: Tensor, targets: Int[Tensor, "string symbol"]) -> dict[str, float]:
    """Loss (nats) and accuracies of the answers."""
    return {"loss": cross_entropy(logits, targets).item(), **accuracies(logits, targets)}


def random_weights_zeroed(
    model: Transformer, n_weights: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """All `W_*` of the model by name, with `n_weights` random entries of them set to zero."""
    weights = {n: p.detach() for n, p in model.named_parameters() if ".W_" in n}
    sizes = [weight.numel() for weight in weights.values()]
    mask = torch.ones(sum(sizes), device=next(iter(weights.values())).device)
    mask[torch.randperm(len(mask), generator=generator)[:n_weights].to(mask.device)] = 0.0
    masks = dict(zip(weights, mask.split(sizes), strict=True))
    return {name: weight * masks[name].view_as(weight) for name, weight in weights.items()}


def controls(
    model: Transformer, holdout: Mapping[str, Tensor], settings: AblateSettings
) -> Iterator[dict[str, str | float]]:
    """One row per draw: random weights are zeroed, as many as each matrix in `WEIGHTS` has."""
    generator = torch.Generator().manual_seed(settings.control_seed)
    read = {"read": outputs(holdout["targets"].shape[1])}
    for component, name in WEIGHTS.items():
        n_weights = model.get_parameter(f"blocks.0.{name}").numel()
        columns = {"component": f"random, as many as {component}", "layer": "all", "head": "all"}
        for draw in range(settings.control_draws):
            changed = random_weights_zeroed(model, n_weights, generator)
            logits = functional_call(model, changed, (holdout["inputs"],), read)
            values = scores(logits, holdout["targets"])
            yield {**columns, "method": "weight_zero", "draw": draw, **values}


def ablate(
    model: Transformer,
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: AblateSettings,
) -> pd.DataFrame:
    """Loss and accuracies on all held-out strings under each ablation and its controls.

    Means are those of the sampled training strings, position by position. The last row shows the
    model again after all ablations, to prove that it is restored. Column `draw` numbers the draws
    of a control.
    """
    holdout, sampled = part(data, "holdout"), part(data, "sampled")
    ablations = list(ablations_of(model.settings.n_layers))
    names = [ablation.name for ablation in ablations if ablation.method == "mean"]
    means = mean_activations(model, lambda: answer_logits(model, sampled["inputs"]), names)
    rows: list[dict[str, str | int | float]] = []
    with torch.no_grad():
        for ablation in (None, *ablations):
            with ablated(model, [ablation] if ablation else [], means):
                logits = answer_logits(model, holdout["inputs"])
            columns = ablation.columns if ablation else UNABLATED
            rows.append({**columns, "draw": 0, **scores(logits, holdout["targets"])})
        rows += controls(model, holdout, settings)
        logits = answer_logits(model, holdout["inputs"])
        restored = UNABLATED | {"method": "restored"}
        rows.append({**restored, "draw": 0, **scores(logits, holdout["targets"])})
    return pd.DataFrame(rows)
