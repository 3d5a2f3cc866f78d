"""List copying: after `d1 d2 SEP` write the list `d1 d2` again, through the one token SEP.

Position   0    1    2    3    4
Sequence   d1   d2   SEP  o1   o2     where o1 = d1 and o2 = d2

A layout says what the model is given and which predictions count ("." does not):

`next_token`
  inputs   d1   d2   SEP  d1   d2
  targets  d2   SEP  d1   d2   .

Nothing foretells d2 when d1 alone has been read, so that the mean loss of the four predictions
cannot be less than ln(n_symbols) / 4.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from toycircuits import training
from toycircuits.config import InputError, Settings
from toycircuits.training import BatchStream, shuffled_batches

POSITIONS = ("d1", "d2", "SEP", "o1", "o2")
LIST_LENGTH = 2
SEP = 2  # position of the separator
UNSCORED = -100  # target of a prediction that does not count; cross_entropy's own ignore_index


class DataSettings(Settings):
    """The task and its data.

    Attributes:
        layout: what the model is given and which predictions count; see the module's docstring.
        n_symbols: the numbers are 0 .. n_symbols - 1; the separator is the token n_symbols.
        n_lists: random lists to train on, repetitions allowed.
        n_sampled: random lists on which accuracy is measured beside that on all lists, as in the
            original study.
        seed: seed of both.
    """

    layout: Literal["next_token"]
    n_symbols: int = Field(ge=2, le=1000)
    n_lists: int = Field(ge=1, le=10_000_000)
    n_sampled: int = Field(ge=1, le=10_000_000)
    seed: int = Field(ge=0, lt=2**63)


class TrainSettings(training.TrainSettings):
    """How to train.

    Attributes:
        drop_last: leave out the rows that do not fill a batch.
        reshuffle: a new order of the rows each epoch, rather than the first one for ever.
    """

    batch_size: int = Field(ge=1)
    batch_seeds: tuple[int, ...]
    drop_last: bool
    reshuffle: bool


def all_lists(n_symbols: int) -> Int[Tensor, "list 2"]:
    """Every ordered list, in lexicographic order: list (d1, d2) is row d1 * n_symbols + d2."""
    numbers = torch.arange(n_symbols)
    return torch.cartesian_prod(numbers, numbers)


def sequences(lists: Int[Tensor, "list 2"], settings: DataSettings) -> dict[str, Tensor]:
    """Inputs and targets [list, pos] of `lists`.

    >>> settings = DataSettings(layout="next_token", n_symbols=10, n_lists=1, n_sampled=1, seed=0)
    >>> made = sequences(torch.tensor([[8, 3]]), settings)
    >>> made["inputs"].tolist(), made["targets"].tolist()
    ([[8, 3, 10, 8, 3]], [[3, 10, 8, 3, -100]])
    """
    separator = torch.full((len(lists), 1), settings.n_symbols)
    inputs = torch.cat([lists, separator, lists], 1)
    targets = F.pad(inputs[:, 1:], (0, 1), value=UNSCORED)
    return {"inputs": inputs, "targets": targets}


def generate(settings: DataSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """Random lists to train on, and all lists to evaluate on.

    Returns:
        inputs, targets [n_lists, pos]; all_inputs, all_targets [n_symbols^2, pos], in
        lexicographic order; sampled [n_sampled], random rows of the latter.

    >>> settings = DataSettings(layout="next_token", n_symbols=3, n_lists=50, n_sampled=4, seed=0)
    >>> data = generate(settings, torch.Generator().manual_seed(0))
    >>> data["inputs"].shape, data["all_inputs"].shape, data["sampled"].shape
    (torch.Size([50, 5]), torch.Size([9, 5]), torch.Size([4]))
    >>> data["all_inputs"][5].tolist()
    [1, 2, 3, 1, 2]
    """
    n = settings.n_symbols
    drawn = torch.randint(n, (settings.n_lists, LIST_LENGTH), generator=generator)
    everything = sequences(all_lists(n), settings)
    return {
        **sequences(drawn, settings),
        **{f"all_{name}": tensor for name, tensor in everything.items()},
        "sampled": torch.randint(n * n, (settings.n_sampled,), generator=generator),
    }


def list_row(numbers: Sequence[int], settings: DataSettings, key: str) -> int:
    """Row of the list `numbers`, which stands at `key` of the params, among all lists.

    Raises:
        InputError: a number is not one of the task's.
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
    """The training lists in random order."""
    rows = {name: data[name] for name in ("inputs", "targets")}
    return shuffled_batches(rows, train.batch_size, generator, train.drop_last, train.reshuffle)


def scored_positions(targets: Int[Tensor, "list pos"]) -> tuple[int, ...]:
    """Positions whose predictions count; they are the same in every row."""
    return tuple(pos for pos, target in enumerate(targets[0].tolist()) if target != UNSCORED)


def loss(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the predictions that count, in nats."""
    read = scored_positions(batch["targets"])
    logits = model(batch["inputs"], read=read)
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"][:, list(read)].flatten())


def complete(model: Any, inputs: Int[Tensor, "list pos"]) -> Int[Tensor, "list 2"]:
    """Greedy continuation of the first three tokens by two: each prediction is fed back.

    The positions not yet written hold the separator; no earlier query may attend to them. Every
    row is computed, so that an intervention sees each activation in its usual shape.
    """
    tokens = inputs.clone()
    tokens[:, SEP + 1 :] = inputs[:, SEP : SEP + 1]
    for pos in range(SEP, SEP + LIST_LENGTH):
        tokens[:, pos + 1] = model(tokens)[:, pos].argmax(-1)
    return tokens[:, SEP + 1 :]


def copied(model: Any, inputs: Int[Tensor, "list pos"]) -> Bool[Tensor, " list"]:
    """Whether the model's own continuation of each list is the list: an exact match."""
    return (complete(model, inputs) == inputs[:, :LIST_LENGTH]).all(1)


def loss_floor(n_symbols: int) -> float:
    """Least mean loss of the layout `next_token`, in nats.

    >>> round(loss_floor(10), 4)
    0.5756
    """
    return math.log(n_symbols) / 4


def evaluate(model: Any, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Loss and exact-match accuracy over all lists, and accuracy on the sampled ones."""
    everything = {name: data[f"all_{name}"] for name in ("inputs", "targets")}
    correct = copied(model, everything["inputs"]).double()
    return {
        "loss": loss(model, everything).item(),
        "loss_floor": loss_floor(math.isqrt(len(correct))),
        "accuracy": correct.mean().item(),
        "accuracy_sampled": correct[data["sampled"]].mean().item(),
    }
