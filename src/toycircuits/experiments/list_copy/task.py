"""List copying: after `d1 d2 SEP`, write `d1 d2` again.

The mask lets the outputs see SEP but not the list, so that SEP has to carry the list.

Position   0    1    2    3    4
Sequence   d1   d2   SEP  o1   o2     where o1 = d1 and o2 = d2

A layout says what the model is given and which predictions count ("." marks those that do not).

`next_token`
  inputs   d1   d2   SEP  d1   d2
  targets  d2   SEP  d1   d2   .

The model trains on random lists, and results are over all lists. Position 0 sees d1 alone and
has to predict d2, which is random. The mean loss of the four predictions therefore cannot fall
below ln(n_symbols) / 4 nats.

`in_place`
  inputs   d1   d2   SEP  SEP  SEP
  targets  .    .    .    d1   d2

The model predicts each output at the output's own position, not one position earlier, and the
loss can reach zero. All lists are split into training and validation lists; results are over the
validation lists.

`masked`
  inputs   d1   d2   SEP  MASK MASK
  targets  .    .    .    d1   d2

As `in_place`, but the inputs at the output positions are a token of their own, MASK.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from toycircuits.core import train_settings
from toycircuits.core.batches import BatchStream, shuffled_batches
from toycircuits.core.config import InputError, TaskSettings

POSITIONS = ("d1", "d2", "SEP", "o1", "o2")
LIST_LENGTH = 2
SEP = 2  # position of the separator
OUTPUTS = (3, 4)  # positions of the list's copy
# Positions of the predictions that count, and the settings of the data's size, by layout.
SCORED = {"next_token": (0, 1, 2, 3), "in_place": OUTPUTS, "masked": OUTPUTS}
SPLIT = ("train_fraction",)
SIZES = {"next_token": ("n_lists", "n_sampled"), "in_place": SPLIT, "masked": SPLIT}
BLOCK = 64  # batches that are drawn at once; with another number, a seed gives other batches


class DataSettings(TaskSettings):
    """The task and its data.

    Attributes:
        layout: what the model is given and which predictions count; see the module's docstring.
        n_symbols: the numbers are 0 .. n_symbols - 1; the tokens after them are MASK, in the layout
            `masked`, and SEP.
        n_lists: `next_token` only: number of random training lists; lists may repeat.
        n_sampled: `next_token` only: number of random lists for the original study's accuracy.
        train_fraction: `in_place` and `masked` only: share of all lists to train on.
        seed: seed of the random lists, or of the split.
    """

    layout: Literal["next_token", "in_place", "masked"]
    n_symbols: int = Field(ge=2, le=1000)
    n_lists: int | None = Field(default=None, ge=1, le=10_000_000)
    n_sampled: int | None = Field(default=None, ge=1, le=10_000_000)
    train_fraction: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        needed = SIZES[self.layout]
        for name in dict.fromkeys(name for names in SIZES.values() for name in names):
            if (getattr(self, name) is not None) != (name in needed):
                allowed = f"the layout {self.layout} needs {', '.join(needed)} and no other"
                raise ValueError(f"{name}: {allowed}")
        if self.train_fraction is not None and not 0 < self.n_train < self.n_symbols**2:
            raise ValueError(f"train_fraction: found {self.train_fraction}; a part would be empty")
        return self

    @property
    def n_train(self) -> int:
        """Number of training lists."""
        if self.train_fraction is None:
            assert self.n_lists is not None
            return self.n_lists
        return int(self.train_fraction * self.n_symbols**2)

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary: the numbers, SEP, and in the layout `masked` MASK."""
        return self.n_symbols + (2 if self.layout == "masked" else 1)

    @property
    def fixed_tokens(self) -> tuple[int | None, ...]:
        """The token that each position holds in all sequences, or None."""
        separator, written = self.n_tokens - 1, self.n_symbols
        if self.layout == "next_token":
            return (None, None, separator, None, None)
        return (None, None, separator, written, written)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor that `generate` makes, by name."""
        lists, scored = self.n_symbols**2, len(SCORED[self.layout])
        rows = {"inputs": self.n_train, "all_inputs": lists}
        shapes: dict[str, tuple[int, ...]] = {name: (n, len(POSITIONS)) for name, n in rows.items()}
        shapes |= {"targets": (self.n_train, scored), "all_targets": (lists, scored)}
        if self.n_sampled is not None:
            return {**shapes, "sampled": (self.n_sampled,)}
        return {**shapes, "validation": (lists - self.n_train,)}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that `evaluate` returns."""
        if self.layout == "next_token":
            return ("loss", "loss_floor", "accuracy", "accuracy_sampled")
        return ("loss", "accuracy", "accuracy_lists")


class TrainSettings(train_settings.TrainSettings):
    """How to train.

    Attributes:
        drop_last: leave out the lists of an epoch that do not fill a batch.
        draw: where batches come from. "same_order": epochs of the training lists in one order for
            ever. "new_orders": a new order in each epoch. "fresh_train": every batch is drawn at
            random from the training lists, with repetitions. "fresh_all": the same from all lists;
            results are then over all lists, because none are held out.
    """

    batch_size: int = Field(ge=1)
    batch_seeds: tuple[int, ...]
    drop_last: bool
    draw: Literal["same_order", "new_orders", "fresh_train", "fresh_all"]

    @model_validator(mode="after")
    def _without_epochs(self) -> Self:
        if self.is_fresh and (self.unit == "epoch" or self.drop_last):
            allowed = "unit: step and drop_last: false, because fresh draws have no epochs"
            raise ValueError(f"draw: found {self.draw}; allowed with it are {allowed}")
        return self

    @property
    def is_fresh(self) -> bool:
        """Whether every batch is a draw of its own, and not a part of an epoch."""
        return self.draw in ("fresh_train", "fresh_all")

    def n_train(self, data: DataSettings) -> int:
        """Number of lists that batches come from."""
        return data.n_symbols**LIST_LENGTH if self.draw == "fresh_all" else data.n_train

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` if `drop_last` leaves no batch, or as the base class does."""
        super().check(data, train)
        if self.drop_last and self.batch_size > data.n_train:
            allowed = f"at most the training lists, {data.n_train}"
            raise InputError(f"train.batch_size: found {self.batch_size}; allowed are {allowed}")

    def select(self, data: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The data; with the draw `fresh_all`, all lists are training lists and none are left."""
        if self.draw != "fresh_all":
            return data
        rest = {name: rows for name, rows in data.items() if name != "validation"}
        return rest | {name: data[f"all_{name}"] for name in ("inputs", "targets")}


def all_lists(n_symbols: int) -> Int[Tensor, "list 2"]:
    """Every ordered list, in lexicographic order: list (d1, d2) is row d1 * n_symbols + d2."""
    numbers = torch.arange(n_symbols, dtype=torch.int64, device="cpu")
    return torch.cartesian_prod(numbers, numbers)


def sequences(lists: Int[Tensor, "list 2"], settings: DataSettings) -> dict[str, Tensor]:
    """Inputs [list, pos] of `lists`, and targets [list, scored] of the predictions that count.

    >>> settings = DataSettings(layout="next_token", n_symbols=10, n_lists=1, n_sampled=1, seed=0)
    >>> made = sequences(torch.tensor([[8, 3]]), settings)
    >>> made["inputs"].tolist(), made["targets"].tolist()
    ([[8, 3, 10, 8, 3]], [[3, 10, 8, 3]])
    >>> settings = DataSettings(layout="in_place", n_symbols=10, train_fraction=0.5, seed=0)
    >>> made = sequences(torch.tensor([[8, 3]]), settings)
    >>> made["inputs"].tolist(), made["targets"].tolist()
    ([[8, 3, 10, 10, 10]], [[8, 3]])
    >>> settings = DataSettings(layout="masked", n_symbols=10, train_fraction=0.5, seed=0)
    >>> sequences(torch.tensor([[8, 3]]), settings)["inputs"].tolist()
    [[8, 3, 11, 10, 10]]
    """
    separator = lists.new_full((len(lists), 1), settings.n_tokens - 1)
    if settings.layout == "next_token":
        inputs = torch.cat([lists, separator, lists], 1)
        return {"inputs": inputs, "targets": inputs[:, 1:].clone()}
    outputs = torch.full_like(lists, settings.n_symbols)  # MASK, or in `in_place` SEP
    return {"inputs": torch.cat([lists, separator, outputs], 1), "targets": lists}


def generate(settings: DataSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """Training lists, all lists, and the rows of all lists that results need.

    Returns:
        inputs [n_train, pos], targets [n_train, scored]: the training lists.
        all_inputs [n_symbols^2, pos], all_targets [n_symbols^2, scored]: all lists, sorted.
        sampled [n_sampled] (`next_token`): rows of all lists, drawn with repetitions.
        validation [n_symbols^2 - n_train] (`in_place` and `masked`): rows of all lists that are
            not trained on.

    >>> settings = DataSettings(layout="next_token", n_symbols=3, n_lists=50, n_sampled=4, seed=0)
    >>> data = generate(settings, torch.Generator().manual_seed(0))
    >>> data["inputs"].shape, data["all_inputs"].shape, data["sampled"].shape
    (torch.Size([50, 5]), torch.Size([9, 5]), torch.Size([4]))
    >>> data["all_inputs"][5].tolist()
    [1, 2, 3, 1, 2]
    >>> settings = DataSettings(layout="in_place", n_symbols=100, train_fraction=0.8, seed=0)
    >>> data = generate(settings, torch.Generator().manual_seed(0))
    >>> data["inputs"][:2].tolist(), len(data["inputs"]), len(data["validation"])
    ([[60, 44, 100, 100, 100], [28, 90, 100, 100, 100]], 8000, 2000)
    """
    n = settings.n_symbols
    lists = all_lists(n)
    everything = {f"all_{name}": rows for name, rows in sequences(lists, settings).items()}
    if settings.n_sampled is None:
        order = torch.randperm(n * n, generator=generator, dtype=torch.int64, device="cpu")
        drawn, validation = lists[order[: settings.n_train]], order[settings.n_train :]
        return {**sequences(drawn, settings), **everything, "validation": validation}
    drawn = random_rows(n, (settings.n_train, LIST_LENGTH), generator)
    sampled = random_rows(n * n, (settings.n_sampled,), generator)
    return {**sequences(drawn, settings), **everything, "sampled": sampled}


def random_rows(
    n_rows: int, shape: tuple[int, ...], generator: torch.Generator
) -> Int[Tensor, "..."]:
    """Numbers below `n_rows`, drawn with repetitions."""
    return torch.randint(n_rows, shape, generator=generator, dtype=torch.int64, device="cpu")


def evaluation_lists(data: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The lists that results are computed on: their name, and their inputs and targets."""
    everything = {name: data[f"all_{name}"] for name in ("inputs", "targets")}
    if "validation" not in data:
        return "all lists", everything
    return "validation lists", {name: rows[data["validation"]] for name, rows in everything.items()}


def list_row(numbers: Sequence[int], settings: DataSettings, key: str) -> int:
    """Row of the list `numbers` among all lists.

    Args:
        key: where `numbers` comes from in params.yaml, for the error message.

    Raises:
        InputError: a number is below 0, or n_symbols or more.
    """
    if not all(0 <= number < settings.n_symbols for number in numbers):
        allowed = f"numbers from 0 to {settings.n_symbols - 1}"
        raise InputError(f"{key}: found {list(numbers)}; allowed are {allowed}")
    return numbers[0] * settings.n_symbols + numbers[1]


def batches(
    data: Mapping[str, Tensor],
    settings: DataSettings,
    train: TrainSettings,
    generator: torch.Generator,
) -> BatchStream:
    """Batches of the training lists, drawn as `train.draw` says."""
    rows = {name: data[name] for name in ("inputs", "targets")}
    if train.is_fresh:
        return fresh_batches(rows, train.batch_size, generator)
    new_orders = train.draw == "new_orders"
    return shuffled_batches(rows, train.batch_size, generator, train.drop_last, new_orders)


def fresh_batches(
    lists: Mapping[str, Tensor], batch_size: int, generator: torch.Generator
) -> BatchStream:
    """Batches of `lists`. Each list of a batch is drawn independently, with repetitions."""

    def draw(generator: torch.Generator) -> list[dict[str, Tensor]]:
        drawn = random_rows(len(lists["inputs"]), (BLOCK, batch_size), generator)
        return [{name: column[rows] for name, column in lists.items()} for rows in drawn]

    return BatchStream(draw, generator)


def scored_positions(targets: Int[Tensor, "list scored"]) -> tuple[int, ...]:
    """Positions of the predictions that count. The number of targets of a list tells which.

    >>> scored_positions(torch.tensor([[8, 3]]))
    (3, 4)
    """
    return {len(positions): positions for positions in SCORED.values()}[targets.shape[1]]


def loss(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the predictions that count, in nats."""
    logits = model(batch["inputs"], read=scored_positions(batch["targets"]), fixed=True)
    return cross_entropy(logits, batch["targets"])


def cross_entropy(
    logits: Float[Tensor, "list scored d_vocab"], targets: Int[Tensor, "list scored"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def complete(model: Any, inputs: Int[Tensor, "list pos"]) -> Int[Tensor, "list 2"]:
    """Greedy continuation of `d1 d2 SEP` by two tokens; each prediction becomes the next input.

    Positions that are not written yet hold the separator, and the mask hides them from all earlier
    queries.
    """
    tokens = inputs.clone()
    tokens[:, SEP + 1 :] = inputs[:, SEP : SEP + 1]
    for pos in range(SEP, SEP + LIST_LENGTH):
        tokens[:, pos + 1] = model(tokens, read=(pos,))[:, 0].argmax(-1)
    return tokens[:, SEP + 1 :]


def written(
    model: Any, inputs: Int[Tensor, "list pos"], targets: Int[Tensor, "list scored"]
) -> Int[Tensor, "list 2"]:
    """The model's copy of each list: `complete` in `next_token`, else one forward pass."""
    if scored_positions(targets) != OUTPUTS:
        return complete(model, inputs)
    return model(inputs, read=OUTPUTS).argmax(-1)


def accuracies(
    outputs: Int[Tensor, "list 2"],
    inputs: Int[Tensor, "list pos"],
    targets: Int[Tensor, "list scored"],
) -> dict[str, Float[Tensor, " list"]]:
    """How well each list is copied, by name of the column in tables and training log.

    `accuracy` means what it meant in the original study of the layout. In `next_token` it says
    whether the whole list is right. In the other layouts it is the share of right numbers, and
    `accuracy_lists` says whether the whole list is right.
    """
    right = (outputs == inputs[:, :LIST_LENGTH]).double()
    exact = right.prod(1)
    if scored_positions(targets) != OUTPUTS:
        return {"accuracy": exact}
    return {"accuracy": right.mean(1), "accuracy_lists": exact}


def loss_floor(n_symbols: int) -> float:
    """Lowest possible mean loss in the layout `next_token`, in nats; see the module's docstring.

    >>> round(loss_floor(10), 4)
    0.5756
    """
    return math.log(n_symbols) / 4


def evaluate(model: Any, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Loss in nats, and accuracies, on the lists of `evaluation_lists`.

    In `next_token`, also the lowest possible loss and the accuracy on the sampled lists.
    """
    _, lists = evaluation_lists(data)
    logits = model(lists["inputs"], read=scored_positions(lists["targets"]), fixed=True)
    outputs = complete(model, lists["inputs"]) if "sampled" in data else logits.argmax(-1)
    by_list = accuracies(outputs, **lists)
    values = {"loss": cross_entropy(logits, lists["targets"]).item()}
    if "sampled" in data:
        values["loss_floor"] = loss_floor(math.isqrt(len(outputs)))
    values |= {name: value.mean().item() for name, value in by_list.items()}
    if "sampled" in data:
        values["accuracy_sampled"] = by_list["accuracy"][data["sampled"]].mean().item()
    return values
