"""What the measures of one run share: the activations of a model, and the pairs it is run on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic.task import LAST, DataSettings


@dataclass(frozen=True)
class Activations:
    """What the measures read of a model, over all p^2 pairs at the last position.

    Attributes:
        mlp: neuron activations [pair, d_mlp].
        resid_mid: residual stream before the MLP [pair, d_model].
        W_out: [d_mlp, d_model].
        W_U: [d_model, p].
    """

    mlp: Float[Tensor, "pair d_mlp"]
    resid_mid: Float[Tensor, "pair d_model"]
    W_out: Float[Tensor, "d_mlp d_model"]
    W_U: Float[Tensor, "d_model p"]

    @cached_property
    def logits(self) -> Float[Tensor, "pair p"]:
        """The logits of the model."""
        return (self.resid_mid + self.mlp @ self.W_out) @ self.W_U

    @cached_property
    def W_logit(self) -> Float[Tensor, "d_mlp p"]:
        """From neurons to logits."""
        return self.W_out @ self.W_U


def read_activations(model: Transformer, tokens: Int[Tensor, "pair pos"]) -> Activations:
    """Run the model on all pairs, reading the last position alone."""
    at_last: dict[str, Tensor] = {}

    def record(value: Tensor, hook: HookPoint) -> None:
        assert hook.name is not None
        at_last[hook.name] = value[:, -1]

    mid, post = "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post"
    with torch.no_grad():
        model.run_with_hooks(tokens, read=(LAST,), fwd_hooks=[(mid, record), (post, record)])
    W_out, W_U = model.get_parameter("blocks.0.mlp.W_out").detach(), model.unembed.W_U.detach()
    return Activations(at_last[post], at_last[mid], W_out, W_U)


def directions(
    labels: Int[Tensor, " pair"], frequencies: Iterable[int], p: int
) -> Float[Tensor, "direction pair"]:
    """Unit vectors cos(w_k x) and sin(w_k x) over all pairs, x = `labels` = a + s b mod p."""
    angles = [2 * torch.pi * k * labels.to(torch.float64) / p for k in frequencies]
    rows = [row for angle in angles for row in (angle.cos(), angle.sin())]
    if not rows:
        return torch.empty(0, len(labels), dtype=torch.float64, device=labels.device)
    stacked = torch.stack(rows)
    return stacked / stacked.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class Problem:
    """The pairs, their labels and the frequencies that all measures of one run look at.

    Attributes:
        p: the modulus.
        tokens: all p^2 pairs, each with the "=" token.
        labels: (a + s b) mod p of each pair.
        train: indices of the pairs that were trained on.
        test: indices of the others.
        key: the key frequencies.
        random: as many frequencies that are not key; a control.
        other_sign: (a - s b) mod p of each pair; a control.
    """

    p: int
    tokens: Int[Tensor, "pair pos"]
    labels: Int[Tensor, " pair"]
    train: Int[Tensor, " train"]
    test: Int[Tensor, " test"]
    key: list[int]
    random: list[int]
    other_sign: Int[Tensor, " pair"]

    @classmethod
    def of(
        cls, data: Mapping[str, Tensor], task: DataSettings, key: list[int], seed: int
    ) -> "Problem":
        """The problem of `data`; `seed` draws the control frequencies."""
        p, tokens = task.modulus, data["tokens"]
        others = np.array([k for k in range(1, p // 2 + 1) if k not in key])
        size = min(len(key), len(others))
        random = np.random.default_rng(seed).choice(others, size, replace=False)
        other_sign = (tokens[:, 0] - task.sign * tokens[:, 1]) % p
        pairs = (tokens, data["labels"], data["train"], data["test"])
        return cls(p, *pairs, key, sorted(random.tolist()), other_sign)

    @cached_property
    def along(self) -> dict[str, Float[Tensor, "direction pair"]]:
        """Directions of the key frequencies, and of the two controls."""
        return {
            "key": directions(self.labels, self.key, self.p),
            "other_sign": directions(self.other_sign, self.key, self.p),
            "random": directions(self.labels, self.random, self.p),
        }
