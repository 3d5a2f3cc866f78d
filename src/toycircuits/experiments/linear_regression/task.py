"""In-context linear regression: from L examples (x_i, y_i) and a query x_q, predict y_q.

A sequence has its own regression vector beta, which the model never sees:

  x_i, x_q, beta ~ N(0, I_d)      y_i = beta.x_i + e_i, e_i ~ N(0, d delta^2)      y_q = beta.x_q

  Z    row i is (x_i, y_i)        [L, d + 1]
  z_q  is (x_q, 0)                [d + 1]

No sequence is seen twice. After He et al. 2025, "In-Context Linear Regression Demystified".
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from toycircuits.core import train_settings
from toycircuits.core.batches import Batch, BatchStream
from toycircuits.core.config import InputError, TaskSettings
from toycircuits.core.generators import seeded

MAX_NUMBERS = 2**31  # how many numbers the sequences in memory may have at most: 8 GiB
BLOCK = 4  # steps whose batches are drawn at once; no result depends on it


class DataSettings(TaskSettings):
    """The task, and the sequences to validate on.

    Attributes:
        d: number of entries of x.
        n_examples: L, the number of examples in a sequence.
        delta: noise level; the noise of y has the variance d delta^2.
        n_validation: number of sequences to validate on.
        seed: seed of the sequences to validate on.
    """

    d: int = Field(ge=1, le=1000)
    n_examples: int = Field(ge=1, le=100_000)
    delta: float = Field(ge=0, le=1e3)
    n_validation: int = Field(ge=2, le=10_000_000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.numbers(self.n_validation) > MAX_NUMBERS:
            allowed = f"at most {MAX_NUMBERS // self.numbers(1)} of this size"
            raise ValueError(f"n_validation: found {self.n_validation}; allowed are {allowed}")
        return self

    def numbers(self, n: int, n_examples: int | None = None) -> int:
        """How many numbers `n` sequences have, with `n_examples` examples each or as set here."""
        return n * (self.d + 1) * (1 + (self.n_examples if n_examples is None else n_examples))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor that `generate` makes."""
        n, d = self.n_validation, self.d
        return {"z": (n, self.n_examples, d + 1), "z_q": (n, d + 1), "y_q": (n,)}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that `evaluate` returns."""
        return ("validation_loss",)

    @property
    def noise_variance(self) -> float:
        """Variance of the noise of y."""
        return self.d * self.delta**2


class TrainSettings(train_settings.TrainSettings):
    """How to train; the size of a batch is a multiple of 16.

    Torch draws normal numbers in groups of 16. With a multiple of 16, several steps drawn at once
    have the same numbers as steps drawn one after the other.

    Attributes:
        skip: how many numbers the generator of a model's weights skips after it is seeded. The
            original study seeds once, and all of its runs draw from one stream of numbers.
    """

    batch_size: int = Field(ge=16, multiple_of=16)
    skip: int = Field(ge=0, lt=2**63)

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` if `BLOCK` batches are too large, or as the base class does."""
        super().check(data, train)
        if data.numbers(BLOCK * self.batch_size) > MAX_NUMBERS:
            allowed = MAX_NUMBERS // data.numbers(BLOCK)
            raise InputError(
                f"train.batch_size: found {self.batch_size}; "
                f"allowed with sequences of this size is at most {allowed}"
            )

    def weight_generator(self, seed: int) -> torch.Generator:
        """The generator that draws a model's weights: seeded, and `skip` numbers ahead."""
        return seeded(seed, self.skip)


def assemble(
    x: Float[Tensor, "*steps batch example d"],
    x_q: Float[Tensor, "*steps batch d"],
    beta: Float[Tensor, "*steps batch d"],
    noise: Float[Tensor, "*steps batch example"],
) -> dict[str, Tensor]:
    """Put sequences together from their parts.

    Returns:
        z [*steps, batch, example, d + 1], z_q [*steps, batch, d + 1], y_q [*steps, batch].

    >>> x, x_q, beta = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[3.0, 5.0]]), torch.ones(1, 2)
    >>> made = assemble(x, x_q, beta, torch.tensor([[0.5]]))
    >>> made["z"].tolist(), made["z_q"].tolist(), made["y_q"].tolist()
    ([[[1.0, 2.0, 3.5]]], [[3.0, 5.0, 0.0]], [8.0])
    """
    y = (x @ beta.unsqueeze(-1)).squeeze(-1) + noise
    return {
        "z": torch.cat([x, y.unsqueeze(-1)], -1),
        "z_q": F.pad(x_q, (0, 1)),
        "y_q": (x_q * beta).sum(-1),
    }


def sample_steps(
    n_steps: int, n: int, settings: DataSettings, generator: torch.Generator
) -> dict[str, Tensor]:
    """Fresh sequences [n_steps, n, ...]; each step draws x, then x_q, beta and the noise."""
    d, length = settings.d, settings.n_examples
    sizes = {"x": (n, length, d), "x_q": (n, d), "beta": (n, d), "noise": (n, length)}
    counts = [torch.Size(size).numel() for size in sizes.values()]
    drawn = torch.empty(n_steps, sum(counts), dtype=torch.float32, device="cpu")
    split = drawn.normal_(generator=generator).split(counts, 1)
    parts = {name: part.unflatten(1, sizes[name]) for name, part in zip(sizes, split, strict=True)}
    parts["noise"] *= settings.noise_variance**0.5
    return assemble(**parts)


def sample(n: int, settings: DataSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """`n` fresh sequences.

    >>> settings = DataSettings(d=2, n_examples=3, delta=0.0, n_validation=2, seed=0)
    >>> made = sample(4, settings, torch.Generator().manual_seed(0))
    >>> made["z"].shape, made["z_q"].shape, made["y_q"].shape
    (torch.Size([4, 3, 3]), torch.Size([4, 3]), torch.Size([4]))
    """
    return {name: value[0] for name, value in sample_steps(1, n, settings, generator).items()}


def generate(settings: DataSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """The sequences to validate on, as `assemble` returns them."""
    made = sample(settings.n_validation, settings, generator)
    return {name: value.clone() for name, value in made.items()}


def batches(
    data: Mapping[str, Tensor],
    settings: DataSettings,
    train: TrainSettings,
    generator: torch.Generator,
) -> BatchStream:
    """Fresh sequences at every step."""
    device = data["z"].device

    def draw(generator: torch.Generator) -> list[Batch]:
        block = sample_steps(BLOCK, train.batch_size, settings, generator)
        block = {name: value.to(device) for name, value in block.items()}
        return [{name: value[i] for name, value in block.items()} for i in range(BLOCK)]

    return BatchStream(draw, generator)


def loss(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Mean squared error of the prediction of y_q."""
    predicted = model(batch["z"], batch["z_q"], factored=True)
    return F.mse_loss(predicted, batch["y_q"].unsqueeze(1))


def evaluate(model: Any, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean squared error on the sequences to validate on."""
    return {"validation_loss": loss(model, data).item()}
