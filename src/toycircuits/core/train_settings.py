"""How to train: the settings that `params.yaml` gives, and the learning-rate schedule."""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.generators import seeded


class Schedule(Settings):
    """Learning-rate factor: (u + 1) / warmup for u < warmup, then a cosine from `peak` to 0.

    u counts the units (epochs or steps) done. The factor after warm-up is
    peak / 2 * (1 + cos(pi (u - warmup) / (length - warmup))).
    """

    warmup: int = Field(ge=1)
    peak: float = Field(gt=0)

    def factor(self, unit: int, length: int) -> float:
        """Factor of the learning rate during unit `unit` of `length`."""
        if unit < self.warmup:
            return (unit + 1) / self.warmup
        done = (unit - self.warmup) / (length - self.warmup)
        return self.peak / 2 * (1 + math.cos(math.pi * done))


class Stop(Settings):
    """Stop as soon as the logged value of `metric` is at least `at_least`."""

    metric: str
    at_least: float


class TrainSettings(Settings):
    """How to train.

    Attributes:
        batch_size: sequences in a step, or None for the full batch.
        unit: what `length`, `log_every` and `checkpoint_every` count.
        compile: compile the loss and its gradient first (`torch.compile`). Training is then up to
            five times as fast, after some 20 seconds. Compiled code rounds differently, and
            therefore this is a setting.
        weight_seeds: seeds of the initial weights, one for each model.
        batch_seeds: seeds of the order or draw of batches, one for each model. None: the generator
            that drew the weights also draws the batches, as after one `torch.manual_seed`.
    """

    optimizer: Literal["Adam", "AdamW"]
    lr: float = Field(gt=0, le=1e3)
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0, le=1e3)
    batch_size: int | None = Field(ge=1)
    unit: Literal["epoch", "step"]
    length: int = Field(ge=1, le=100_000_000)
    log_every: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    schedule: Schedule | None
    clip_grad_norm: float | None = Field(gt=0)
    stop: Stop | None
    compile: bool
    weight_seeds: tuple[int, ...] = Field(min_length=1, max_length=1000)
    batch_seeds: tuple[int, ...] | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: found {self.betas}; allowed are two numbers in [0, 1)")
        if self.optimizer == "Adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay: found {self.weight_decay}; Adam takes 0 only, AdamW decays"
            )
        if self.batch_size is None and self.batch_seeds is not None:
            raise ValueError(
                f"batch_seeds: found {self.batch_seeds}; the full batch takes null only"
            )
        if self.batch_seeds is not None and len(self.batch_seeds) != len(self.weight_seeds):
            raise ValueError(
                f"batch_seeds: found {len(self.batch_seeds)} seeds; "
                f"allowed are as many as weight_seeds, {len(self.weight_seeds)}"
            )
        if len(set(self.weight_seeds)) != len(self.weight_seeds):
            raise ValueError(f"weight_seeds: found {self.weight_seeds}; each is allowed once")
        for name in ("weight_seeds", "batch_seeds"):
            for seed in getattr(self, name) or ():
                if not 0 <= seed < 2**63:
                    raise ValueError(
                        f"{name}: found {seed}; allowed are numbers from 0 below 2**63"
                    )
        if self.schedule is not None and self.schedule.warmup >= self.length:
            raise ValueError(
                f"schedule.warmup: found {self.schedule.warmup}; allowed is less than length"
            )
        return self

    def check(self, data: Any, train: Any) -> None:
        """Raise an `InputError` for a metric to stop at that is not logged."""
        logged = ("step", "lr", "train_loss", *data.metrics)
        if self.stop is not None and self.stop.metric not in logged:
            allowed = ", ".join(logged)
            raise InputError(f"train.stop.metric: found {self.stop.metric!r}; allowed: {allowed}")

    @property
    def seed_pairs(self) -> list[tuple[int, int | None]]:
        """(weight seed, batch seed) of each model that is trained."""
        return list(zip(self.weight_seeds, self.batch_seeds or cycle([None]), strict=False))

    def weight_generator(self, seed: int) -> torch.Generator:
        """What draws the initial weights of the model with this seed."""
        return seeded(seed)

    def select(self, data: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The part of the data that these settings train and evaluate on, by default all of it."""
        return data
