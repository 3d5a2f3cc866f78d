"""Reverse a string and add one to each symbol: y_i = x_(n-1-i) + 1, modulo the alphabet.

For n = 8:

Position   0    1   2   3   4   5   6   7   8   9  10  11  12  13  14  15
Input     BOS  x0  x1  x2  x3  x4  x5  x6  x7  y0  y1  y2  y3  y4  y5  y6
Target     .    .   .   .   .   .   .   .  y0  y1  y2  y3  y4  y5  y6  y7     ("." does not count)

The model predicts y_i at position n + i. For this it needs x_(n-1-i), which stands at position
n - i. Queries n .. 2n-1 and their keys n .. 1 form an anti-diagonal of the attention pattern
("mirrored attention").
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from toycircuits.core import train_settings
from toycircuits.core.batches import BatchStream, shuffled_batches
from toycircuits.core.config import InputError, TaskSettings

MAX_STRINGS = 2**22
SPLITS = ("sequential", "random")


class DataSettings(TaskSettings):
    """The task and its two splits.

    Attributes:
        n_symbols: symbols 0 .. n_symbols - 1; the start token BOS is n_symbols.
        length: symbols per string.
        n_train: number of training strings out of all n_symbols^length; the rest is held out.
        n_sampled: number of random training strings on which training accuracy is measured.
        seed: seed of the random split and of both samples.
    """

    n_symbols: int = Field(ge=2, le=1000)
    length: int = Field(ge=2, le=20)
    n_train: int = Field(ge=1)
    n_sampled: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_strings > MAX_STRINGS:
            allowed = f"at most {MAX_STRINGS} strings, not {self.n_strings}"
            raise ValueError(f"length: found {self.length}; allowed are {allowed}")
        if self.n_train >= self.n_strings:
            allowed = f"less than all strings, {self.n_strings}"
            raise ValueError(f"n_train: found {self.n_train}; allowed is {allowed}")
        if self.n_sampled > self.n_train:
            allowed = f"at most n_train, {self.n_train}"
            raise ValueError(f"n_sampled: found {self.n_sampled}; allowed is {allowed}")
        return self

    @property
    def n_strings(self) -> int:
        """Number of all strings."""
        return self.n_symbols**self.length

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor that `generate` makes, by name."""
        n, length = self.n_strings, self.length
        rows = {"train": self.n_train, "holdout": n - self.n_train, "sampled": self.n_sampled}
        splits = {f"{split}_{name}": (size,) for split in SPLITS for name, size in rows.items()}
        return {"inputs": (n, 2 * length), "targets": (n, length), **splits}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that `evaluate` returns."""
        scores = ("accuracy", "accuracy_string")
        return ("holdout_loss", *(f"{w}_{name}" for w in ("train", "holdout") for name in scores))


class TrainSettings(train_settings.TrainSettings):
    """How to train.

    Attributes:
        split: which strings to train on. "sequential": the first n_train in lexicographic order,
            so that all held-out strings start alike. "random": n_train random ones.
        drop_last: leave out the rows that do not fill a batch.
    """

    batch_size: int = Field(ge=1)
    batch_seeds: tuple[int, ...]
    split: Literal["sequential", "random"]
    drop_last: bool

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` if `drop_last` leaves no batch, or as the base class does."""
        super().check(data, train)
        if self.drop_last and self.batch_size > data.n_train:
            allowed = f"at most n_train, {data.n_train}"
            raise InputError(f"train.batch_size: found {self.batch_size}; allowed are {allowed}")

    def select(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs and targets, and the rows `train`, `holdout` and `sampled` of `split`."""
        rows = {name: data[f"{self.split}_{name}"] for name in ("train", "holdout", "sampled")}
        return {"inputs": data["inputs"], "targets": data["targets"], **rows}


def all_strings(n_symbols: int, length: int) -> Int[Tensor, "string symbol"]:
    """Every string, in lexicographic order.

    >>> all_strings(2, 3)[:4].tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    """
    symbols = torch.arange(n_symbols, dtype=torch.int64, device="cpu")
    return torch.cartesian_prod(*[symbols] * length)


def reverse_increment(
    strings: Int[Tensor, "string symbol"], n_symbols: int
) -> Int[Tensor, "string symbol"]:
    """The answer to each string.

    >>> reverse_increment(torch.tensor([[0, 1, 2, 3, 0, 0, 2, 1]]), n_symbols=4).tolist()
    [[2, 3, 1, 1, 0, 3, 2, 1]]
    """
    return (strings.flip(1) + 1) % n_symbols


def generate(settings: DataSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """All strings in lexicographic order, and both splits of their rows.

    Returns:
        inputs [string, 2 length]: BOS, x, and y without its last symbol.
        targets [string, length]: y.
        S_train, S_holdout, S_sampled (for each split S): rows; S_sampled is a random part of
            S_train.

    >>> settings = DataSettings(n_symbols=3, length=2, n_train=7, n_sampled=2, seed=0)
    >>> data = generate(settings, torch.Generator().manual_seed(0))
    >>> data["inputs"][5].tolist(), data["targets"][5].tolist()
    ([3, 1, 2, 0], [0, 2])
    >>> data["sequential_holdout"].tolist()
    [7, 8]
    """
    strings = all_strings(settings.n_symbols, settings.length)
    answers = reverse_increment(strings, settings.n_symbols)
    start = strings.new_full((len(strings), 1), settings.n_symbols)
    tensors = {"inputs": torch.cat([start, strings, answers[:, :-1]], 1), "targets": answers}
    in_order = torch.arange(len(strings), dtype=torch.int64, device="cpu")
    orders = (in_order, _random_order(len(strings), generator))
    for split, order in zip(SPLITS, orders, strict=True):
        train = order[: settings.n_train].clone()
        sampled = _random_order(settings.n_train, generator)[: settings.n_sampled]
        tensors[f"{split}_train"] = train
        tensors[f"{split}_holdout"] = order[settings.n_train :].clone()
        tensors[f"{split}_sampled"] = train[sampled]
    return tensors


def _random_order(n_rows: int, generator: torch.Generator) -> Int[Tensor, " row"]:
    return torch.randperm(n_rows, generator=generator, dtype=torch.int64, device="cpu")


def part(data: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Inputs and targets of the rows `name`: "train", "holdout" or "sampled"."""
    return {key: data[key][data[name]] for key in ("inputs", "targets")}


def batches(
    data: Mapping[str, Tensor],
    settings: DataSettings,
    train: TrainSettings,
    generator: torch.Generator,
) -> BatchStream:
    """The training strings in random order, with a new order for each epoch."""
    return shuffled_batches(part(data, "train"), train.batch_size, generator, train.drop_last)


def outputs(length: int) -> tuple[int, ...]:
    """Positions at which the model predicts the answer, in the answer's order.

    >>> outputs(8)
    (8, 9, 10, 11, 12, 13, 14, 15)
    """
    return tuple(range(length, 2 * length))


def answer_logits(
    model: Any, inputs: Int[Tensor, "string pos"]
) -> Float[Tensor, "string symbol d_vocab_out"]:
    """The model's logits for each symbol of the answer."""
    return model(inputs, read=outputs(inputs.shape[1] // 2), fixed=True)


def cross_entropy(
    logits: Float[Tensor, "string symbol d_vocab_out"], targets: Int[Tensor, "string symbol"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answer's symbols, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def loss(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answer's symbols, in nats; the model reads the true ones before."""
    return cross_entropy(answer_logits(model, batch["inputs"]), batch["targets"])


def accuracies(
    logits: Float[Tensor, "string symbol d_vocab_out"], targets: Int[Tensor, "string symbol"]
) -> dict[str, float]:
    """Shares of symbols, and of whole strings, predicted right; the model reads true symbols.

    >>> logits = F.one_hot(torch.tensor([[1, 2], [0, 0]]), 3).float()
    >>> accuracies(logits, torch.tensor([[1, 2], [0, 1]]))
    {'accuracy': 0.75, 'accuracy_string': 0.5}
    """
    right = logits.argmax(-1) == targets
    values = {"accuracy": right, "accuracy_string": right.all(1)}
    return {name: value.double().mean().item() for name, value in values.items()}


def evaluate(model: Any, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Loss and accuracies on all held-out strings; accuracies on the sampled training strings."""
    sampled, holdout = part(data, "sampled"), part(data, "holdout")
    logits = answer_logits(model, holdout["inputs"])
    values = {"holdout_loss": cross_entropy(logits, holdout["targets"]).item()}
    on_train = accuracies(answer_logits(model, sampled["inputs"]), sampled["targets"])
    on_holdout = accuracies(logits, holdout["targets"])
    values |= {f"train_{name}": value for name, value in on_train.items()}
    return values | {f"holdout_{name}": value for name, value in on_holdout.items()}
