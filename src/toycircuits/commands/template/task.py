"""An experiment as small as they come: say the first token again at the second position."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from toycircuits.core.batches import BatchStream, full_batch
from toycircuits.core.config import Settings
from toycircuits.core.train_settings import TrainSettings

__all__ = ["DataSettings", "TrainSettings", "batches", "evaluate", "generate", "loss"]


class DataSettings(Settings):
    """What is said.

    Attributes:
        n_tokens: how many tokens there are.
        seed: seed of their order.
    """

    n_tokens: int = Field(ge=2)
    seed: int = Field(ge=0, lt=2**63)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that `generate` makes."""
        return {"tokens": (self.n_tokens, 2)}

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `evaluate` gives."""
        return ("accuracy",)


def generate(settings: DataSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """Every token, followed by token 0; tokens [n_tokens, 2]."""
    first = torch.randperm(settings.n_tokens, generator=generator)
    return {"tokens": torch.stack([first, torch.zeros_like(first)], 1)}


def batches(
    data: Mapping[str, Tensor],
    settings: DataSettings,
    train: TrainSettings,
    generator: torch.Generator,
) -> BatchStream:
    """All of it, at every step."""
    return full_batch(dict(data))


def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy at the second position."""
    return F.cross_entropy(model(batch["tokens"], read=(1,))[:, 0], batch["tokens"][:, 0])


def evaluate(model: Any, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of tokens said again."""
    logits = model(data["tokens"], read=(1,))[:, 0]
    return {"accuracy": (logits.argmax(-1) == data["tokens"][:, 0]).double().mean().item()}
