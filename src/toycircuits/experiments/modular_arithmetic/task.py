"""Modular arithmetic: from `a b =` predict (a - b) mod p, or (a + b) mod p.

After Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability".
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from toycircuits.core import train_settings
from toycircuits.core.batches import BatchStream, full_batch
from toycircuits.core.config import TaskSettings

LAST = 2  # the position of "=", the only one whose logits are read


class DataSettings(TaskSettings):
    """The task and its split.

    Attributes:
        modulus: p, odd, so that sines and cosines of p // 2 frequencies and the constant are a
            basis.
        train_fraction: share of the p^2 pairs to train on.
        seed: seed of the split.
    """

    modulus: int = Field(ge=3, le=1009)
    operation: Literal["subtract", "add"]
    train_fraction: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.modulus % 2 == 0:
            raise ValueError(f"modulus: found {self.modulus}; allowed are odd numbers")
        if not 0 < self.n_train < self.modulus**2:
            raise ValueError(
                f"train_fraction: found {self.train_fraction}; "
                "allowed are fractions that leave pairs to train on and pairs to test on"
            )
        return self

    @property
    def n_train(self) -> int:
        """Number of training pairs."""
        return int(self.train_fraction * self.modulus**2)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor that `generate` makes."""
        pairs = self.modulus**2
        rows = {"train": (self.n_train,), "test": (pairs - self.n_train,)}
        return {"tokens": (pairs, 3), "labels": (pairs,), **rows}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that `evaluate` returns."""
        return ("test_loss",)

    @property
    def sign(self) -> int:
        """The label is (a + sign * b) mod p."""
        return 1 if self.operation == "add" else -1


class TrainSettings(train_settings.TrainSettings):
    """How to train: every step takes the full batch."""

    batch_size: None
    batch_seeds: None


def generate(settings: DataSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """All p^2 pairs, a-major, and a random split of their indices.

    Returns:
        tokens [p^2, 3] (a, b and the "=" token p), labels [p^2], train and test (row indices).

    >>> settings = DataSettings(modulus=5, operation="subtract", train_fraction=0.4, seed=0)
    >>> data = generate(settings, torch.Generator().manual_seed(0))
    >>> data["tokens"][7].tolist(), data["labels"][7].item()
    ([1, 2, 5], 4)
    >>> len(data["train"]), len(data["test"])
    (10, 15)
    """
    p = settings.modulus
    numbers = torch.arange(p, dtype=torch.int64, device="cpu")
    a, b = torch.cartesian_prod(numbers, numbers).unbind(1)
    order = torch.randperm(p * p, generator=generator, dtype=torch.int64, device="cpu")
    return {
        "tokens": torch.stack([a, b, torch.full_like(a, p)], 1),
        "labels": (a + settings.sign * b) % p,
        "train": order[: settings.n_train].clone(),
        "test": order[settings.n_train :].clone(),
    }


def cross_entropy(
    logits: Float[Tensor, "pair d_vocab_out"], labels: Int[Tensor, " pair"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats, its log-softmax in float64: losses near 1e-7 are compared."""
    log_probs = logits.to(torch.float64).log_softmax(-1)
    return -log_probs.gather(1, labels.unsqueeze(1)).mean()


def accuracy(logits: Float[Tensor, "pair d_vocab_out"], labels: Int[Tensor, " pair"]) -> float:
    """Share of pairs whose largest logit is the label."""
    return (logits.argmax(-1) == labels).double().mean().item()


def split(data: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tokens and labels of the "train" or the "test" pairs."""
    return {"tokens": data["tokens"][data[name]], "labels": data["labels"][data[name]]}


def batches(
    data: Mapping[str, Tensor],
    settings: DataSettings,
    train: TrainSettings,
    generator: torch.Generator,
) -> BatchStream:
    """The full training set at every step."""
    return full_batch(split(data, "train"))


def loss(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Cross-entropy at the last position."""
    logits = model(batch["tokens"], read=(LAST,), fixed=True)[:, 0]
    return cross_entropy(logits, batch["labels"])


def evaluate(model: Any, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Loss on the test pairs."""
    return {"test_loss": loss(model, split(data, "test")).item()}
