"""Repeat the first token at the second position.

tokens   3 0        The second token is always 0.
target     3        Read at the second position alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from toycircuits.core.batches import BatchStream, full_batch
from toycircuits.core.config import TaskSettings
from toycircuits.core.train_settings import TrainSettings

__all__ = ["DataSettings", "TrainSettings", "batches", "evaluate", "generate", "loss"]


class DataSettings(TaskSettings):
    """The tokens.

    Attributes:
        n_tokens: number of different tokens.
        seed: seed of their order.
    """

    n_tokens: int = Field(ge=2)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor that `generate` makes."""
        return {"tokens": (self.n_tokens, 2)}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that `evaluate` returns."""
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
    """All sequences at every step."""
    return full_batch(dict(data))


def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy at the second position."""
    return F.cross_entropy(model(batch["tokens"], read=(1,))[:, 0], batch["tokens"][:, 0])


def evaluate(model: Any, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of tokens that are repeated."""
    logits = model(data["tokens"], read=(1,))[:, 0]
    return {"accuracy": (logits.argmax(-1) == data["tokens"][:, 0]).double().mean().item()}
