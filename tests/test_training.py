"""The training loop: schedule, log, checkpoints, early stop, divergence, gradients."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_trainings import (
    Mortal,
    holds,
    new_model,
    nothing,
    run,
    same,
    score,
    settings,
    some_data,
    squared_error,
    weights,
)
from torch import Tensor, nn

from toycircuits.core.batches import Batch, full_batch, shuffled_batches
from toycircuits.core.checkpoints import Trajectory
from toycircuits.core.config import InputError
from toycircuits.core.gradients import gradients_of
from toycircuits.core.optimizer import Optimizer
from toycircuits.core.train_settings import Schedule
from toycircuits.core.training import DivergedError, Objective, train


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("schedule", [None, {"warmup": 5, "peak": 1.3}])
def test_training_equals_a_loop_written_by_hand(
    tmp_path: Path, schedule: dict[str, float] | None, clip: float | None, optimizer: str
) -> None:
    decay = 0.5 if optimizer == "AdamW" else 0.0
    changes = {"optimizer": optimizer, "weight_decay": decay, "length": 20}
    rows, trained = run(tmp_path, settings(schedule=schedule, clip_grad_norm=clip, **changes))

    model, data, losses = new_model(), some_data(), []
    kind = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[optimizer]
    by_hand = kind(model.parameters(), lr=0.1, betas=(0.9, 0.98), weight_decay=decay, fused=True)
    for step in range(20):
        if schedule:
            rising, falling = (step + 1) / 5, 0.65 * (1 + math.cos(math.pi * (step - 5) / 15))
            by_hand.param_groups[0]["lr"] = 0.1 * (rising if step < 5 else falling)
        by_hand.zero_grad()
        error = squared_error(model, data)
        losses.append(error.item())
        error.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        by_hand.step()

    assert same(weights(trained), weights(model))
    assert [row["train_loss"] for row in rows] == [*losses, squared_error(model, data).item()]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2


def test_clipping_matters(tmp_path: Path) -> None:
    """Else the loop by hand would prove nothing: Adam hardly feels a constant factor."""
    _, free = run(tmp_path / "free", settings())
    _, clipped = run(tmp_path / "clipped", settings(clip_grad_norm=1.0))
    assert not same(weights(free), weights(clipped))


def test_frozen_parameters_neither_move_nor_decay(tmp_path: Path) -> None:
    model = new_model()
    model.bias.requires_grad_(False)
    before = weights(model)
    objective = Objective(full_batch(some_data()), squared_error, nothing)
    train(model, objective, settings(), tmp_path, "key", {})
    assert torch.equal(model.bias, before[1])
    assert not torch.equal(model.weight, before[0])


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        (0, 0.2),
        (3, 0.8),
        (4, 1.0),
        (5, 1.3),
        (12, 0.65 * (1 + (1 + math.sqrt(5)) / 4)),  # cos(pi / 5)
        (19, 0.65 * (1 + (math.sqrt(5) - 1) / 4)),  # cos(2 pi / 5)
        (26, 0.65 * (1 - (math.sqrt(5) - 1) / 4)),
        (40, 0.0),
    ],
)
def test_schedule_by_hand(unit: int, factor: float) -> None:
    found = Schedule(warmup=5, peak=1.3).factor(unit, 40)
    assert found == pytest.approx(factor, abs=1e-12)  # a cosine in float64


def test_the_learning_rate_follows_the_epochs(tmp_path: Path) -> None:
    changes = {"unit": "epoch", "length": 4, "schedule": {"warmup": 2, "peak": 1.0}}
    stream = shuffled_batches(some_data(), 4, torch.Generator(), drop_last=False)
    rows, _ = run(tmp_path, settings(batch_size=4, batch_seeds=[0], **changes), stream)
    # 1/2, 2/2, then (1 + cos(0)) / 2 and (1 + cos(pi / 2)) / 2; the last row repeats the last
    # epoch's rate, since no further one begins.
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.05])
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize(
    ("changes", "logged", "saved"),
    [
        ({"length": 10, "log_every": 3, "checkpoint_every": 4}, [0, 3, 6, 9, 10], [0, 4, 8, 10]),
        ({"length": 4, "log_every": 2, "checkpoint_every": 9}, [0, 2, 4], [0, 4]),
        ({"length": 1, "log_every": 9, "checkpoint_every": 1}, [0, 1], [0, 1]),
        (
            {"length": 4, "log_every": 2, "checkpoint_every": 3, "unit": "epoch"},
            [0, 6, 12],  # three batches an epoch
            [0, 9, 12],
        ),
    ],
)
def test_log_and_checkpoint_steps(
    tmp_path: Path, changes: dict[str, Any], logged: list[int], saved: list[int]
) -> None:
    stream = shuffled_batches(some_data(), 4, torch.Generator(), drop_last=False)
    rows, model = run(tmp_path, settings(batch_size=4, batch_seeds=[0], **changes), stream)
    trajectory = Trajectory(tmp_path / "trajectory")
    assert [row["step"] for row in rows] == logged
    assert trajectory.steps == saved
    state, metadata = trajectory.load()
    assert metadata == {"name": "test", "step": saved[-1]}
    assert holds(state, model)
    assert holds(trajectory.load(0)[0], new_model())


def test_a_checkpoint_holds_the_weights_at_its_step(tmp_path: Path) -> None:
    run(tmp_path / "long", settings(length=10, checkpoint_every=5))
    _, short = run(tmp_path / "short", settings(length=5))
    state, _ = Trajectory(tmp_path / "long" / "trajectory").load(5)
    assert holds(state, short)


def test_evaluation_sees_the_model_without_gradient(tmp_path: Path) -> None:
    def evaluate(model: nn.Linear) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        return {"bias": model.bias.item()}

    rows, model = run(tmp_path, settings(), evaluate=evaluate)
    assert rows[0] == {
        "step": 0,
        "lr": 0.1,
        "train_loss": squared_error(new_model(), some_data()).item(),
        "bias": new_model().bias.item(),
    }
    assert rows[-1]["bias"] == model.bias.item()


def test_early_stop_ends_at_the_first_log_point_that_is_good_enough(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"length": 60, "log_every": 2, "checkpoint_every": 50}
    rows, _ = run(tmp_path / "whole", settings(**changes), evaluate=score)
    enough = rows[7]["score"]
    assert all(row["score"] < enough for row in rows[:7])

    changes["stop"] = {"metric": "score", "at_least": enough}
    stopped, model = run(tmp_path / "stopped", settings(**changes), evaluate=score)
    assert stopped == rows[:8]
    trajectory = Trajectory(tmp_path / "stopped" / "trajectory")
    assert trajectory.steps == [0, 14]
    assert holds(trajectory.load()[0], model)


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": [0.9, 1.0]}, "betas: found (0.9, 1.0); allowed are two numbers in [0, 1)"),
        ({"optimizer": "Adam"}, "weight_decay: found 0.5; Adam takes 0 only, AdamW decays"),
        ({"optimizer": "SGD"}, "train.optimizer: found \"SGD\"; input should be 'Adam' or 'AdamW'"),
        ({"lr": 0}, "train.lr: found 0; input should be greater than 0"),
        ({"batch_seeds": [1]}, "batch_seeds: found (1,); the full batch takes null only"),
        (
            {"batch_size": 4, "batch_seeds": [1, 2]},
            "batch_seeds: found 2 seeds; allowed are as many as weight_seeds, 1",
        ),
        ({"weight_seeds": [3, 3]}, "weight_seeds: found (3, 3); each is allowed once"),
        ({"weight_seeds": [-1]}, "allowed are numbers from 0 below 2**63"),
        ({"weight_seeds": [2**63]}, "allowed are numbers from 0 below 2**63"),
        ({"weight_seeds": []}, "train.weight_seeds: found []; "),
        (
            {"schedule": {"warmup": 10, "peak": 1.0}},
            "schedule.warmup: found 10; allowed is less than length",
        ),
        ({"schedule": {"warmup": 0, "peak": 1.0}}, "train.schedule.warmup: found 0; "),
        ({"stop": {"metric": "a"}}, "train.stop.at_least: missing key"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        settings(**changes)
    assert message in str(caught.value)
    assert str(caught.value).startswith("train")
    assert "\n" not in str(caught.value)


def test_members_pair_the_seeds() -> None:
    assert settings(weight_seeds=[5, 6]).seed_pairs == [(5, None), (6, None)]
    paired = settings(weight_seeds=[5, 6], batch_size=4, batch_seeds=[2, 2])
    assert paired.seed_pairs == [(5, 2), (6, 2)]


# --- batches ---


def diverges_at(step: int, value: float) -> Callable[[Any, Batch], Tensor]:
    mortal = Mortal()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        error = mortal(model, batch)
        return error * value if mortal.calls > step else error

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("changes", "noticed", "kept"),
    [
        ({"log_every": 1, "checkpoint_every": 3}, 7, [0, 3, 6]),
        ({"log_every": 100, "checkpoint_every": 4}, 8, [0, 4]),
        ({"log_every": 100, "checkpoint_every": 100}, 10, [0]),  # at the end at the latest
    ],
)
def test_a_diverged_training_stops_and_keeps_its_good_checkpoints(
    tmp_path: Path, value: float, changes: dict[str, int], noticed: int, kept: list[int]
) -> None:
    with pytest.raises(
        DivergedError, match=rf"^train: the loss is (nan|inf) at step {noticed}, "
    ) as caught:
        run(tmp_path, settings(**changes), loss=diverges_at(7, value))
    logged = 6 if changes["log_every"] == 1 else 0
    assert re.search(rf", and was \d+\.?\d* at step {logged}; the checkpoints", str(caught.value))
    trajectory = Trajectory(tmp_path / "trajectory")
    assert trajectory.steps == kept
    assert all(weight.isfinite().all() for weight in trajectory.load()[0].values())


def test_gradients_are_contiguous_and_share_no_memory() -> None:
    """`torch.autograd.grad` gives one tensor for both terms of a sum, and transposed ones."""
    a, b, c = (torch.ones(2, 3, requires_grad=True) for _ in range(3))
    differentiate = gradients_of(lambda model, x: (a + b).sum() + (x["x"] @ c.T).sum(), [a, b, c])
    _, (of_a, of_b, of_c) = differentiate(None, {"x": torch.randn(4, 3)})
    assert of_a is not None
    assert of_b is not None
    assert of_c is not None
    assert of_a.data_ptr() != of_b.data_ptr()
    assert of_c.is_contiguous()


def test_the_optimizer_moves_what_is_trainable_and_has_a_gradient() -> None:
    model = new_model()
    model.weight.requires_grad_(False)
    optimizer = Optimizer(model, settings(optimizer="AdamW", lr=0.2))
    assert [id(parameter) for parameter in optimizer.parameters] == [id(model.bias)]
    model.weight.requires_grad_(True)
    optimizer = Optimizer(model, settings(optimizer="AdamW", lr=0.2))
    weight, bias = weights(model)
    model.bias.grad = torch.ones_like(model.bias)
    optimizer.step()
    assert torch.equal(model.weight, weight)  # no gradient: no decay either, as with PyTorch's
    assert not torch.equal(model.bias, bias)
    assert model.bias.grad is None
