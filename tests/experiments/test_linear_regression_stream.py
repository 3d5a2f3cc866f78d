"""The published stream: the study seeds one generator once, and all its runs draw from it.

It draws a batch to print it, and runs H = 2. Between H = 2 and H = 1 it draws the sequences of its
error curves. H = 4 and H = 8 follow. A run makes its model, then draws a batch for each step, and
one to validate on after every thousandth.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from project import ROOT
from torch import nn

from toycircuits.core import training
from toycircuits.core.config import find_run, read_params
from toycircuits.core.generators import seeded
from toycircuits.experiments.linear_regression import model, task

D, LENGTH, BATCH = 5, 40, 128
N_BATCHES = 500_001 + 501  # of a run
CHUNK = 2**26
LOSSES = {2: [4.7217, 5.2414], 1: [3.9302, 6.2170], 4: [5.6028, 5.4725], 8: [3.8172, 4.7141]}


def shapes(n: int, length: int) -> list[tuple[int, ...]]:
    """Of the normal numbers of `n` sequences: x, x_q, beta and the noise."""
    return [(n, length, D), (n, 1, D), (n, D, 1), (n, length, 1)]


def n_draws(shape: tuple[int, ...]) -> int:
    """Draws of `torch.randn`, which draws the last 16 numbers anew where 16 does not divide."""
    n = torch.Size(shape).numel()
    return n + 16 * (n % 16 > 0)


def draws_of_batches(n: int) -> int:
    return n * sum(map(n_draws, shapes(BATCH, LENGTH)))


def draws_of_model(heads: int) -> int:
    return 3 * (D + 1) ** 2 * heads + (D + 1) * heads


def draws_of_curves() -> int:
    return sum(n_draws(shape) for length in range(1, 501, 5) for shape in shapes(100, length))


def start(heads: int) -> int:
    """Draws before the model with so many heads."""
    before = {1: [2], 2: [], 4: [2, 1], 8: [2, 1, 4]}[heads]
    runs = sum(draws_of_model(other) + draws_of_batches(N_BATCHES) for other in before)
    return draws_of_batches(1) + runs + (draws_of_curves() if before else 0)


def settings_of(heads: int) -> tuple[Any, task.TrainSettings, Any]:
    params = read_params(ROOT / "params.yaml") | {"scale": "paper"}
    run = find_run(params, f"linear_regression_h{heads}")
    train = run.section("train", task.TrainSettings)
    train = train.model_copy(update={"length": 1, "log_every": 1, "compile": False})
    data = run.section("data", task.DataSettings)
    return data, train, run.section("model", model.ModelSettings)


@pytest.mark.parametrize("heads", LOSSES)
def test_params_name_the_start_of_each_run(heads: int) -> None:
    _, train, shape = settings_of(heads)
    assert (shape.n_heads, train.weight_seeds[0]) == (heads, 1024)
    assert train.skip == start(heads)


@pytest.mark.parametrize("heads", LOSSES)
def test_first_losses_are_those_that_the_study_printed(heads: int, tmp_path: Path) -> None:
    data, train, shape = settings_of(heads)
    generator = train.weight_generator(1024)
    made = model.build(shape, data, generator)
    stream = task.batches({"z": torch.zeros(1)}, data, train, generator)
    objective = training.Objective(stream, task.loss, lambda _: {})
    rows = training.train(made, objective, train, tmp_path, "key", {})
    assert [round(row["train_loss"], 4) for row in rows] == LOSSES[heads]


def test_the_first_query_is_that_which_the_study_printed() -> None:
    shown = task.sample(BATCH, settings_of(2)[0], seeded(1024))
    assert shown["z_q"][0].tolist() == pytest.approx(
        [-1.0028, 0.5808, -0.0651, 0.5011, 1.9787, 0], abs=5e-5
    )


@pytest.mark.slow  # a minute or two for each run
@pytest.mark.parametrize(("heads", "following"), [(2, 1), (1, 4), (4, 8)])
def test_drawing_a_run_leads_to_the_start_of_the_next(heads: int, following: int) -> None:
    """The numbers of batches are drawn as random bytes, each of which is one draw as well."""
    with torch.random.fork_rng():
        torch.set_rng_state(seeded(1024, start(heads)).get_state())
        for _ in range(3):
            nn.Linear(D + 1, (D + 1) * heads, bias=False)
        nn.Linear((D + 1) * heads, 1, bias=False)
        left = draws_of_batches(N_BATCHES)
        buffer = torch.empty(CHUNK, dtype=torch.uint8)
        while left:
            buffer[: min(left, CHUNK)].random_()
            left -= min(left, CHUNK)
        if heads == 2:
            for length in range(1, 501, 5):
                for shape in shapes(100, length):
                    torch.randn(shape)
        assert torch.equal(torch.get_rng_state(), seeded(1024, start(following)).get_state())
