"""The loop against loops written by hand, and killed trainings against uninterrupted ones."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toycircuits.core import training
from toycircuits.core.batches import Batch, BatchStream, full_batch, shuffled_batches
from toycircuits.core.checkpoints import Trajectory
from toycircuits.core.config import InputError
from toycircuits.core.gradients import gradients_of
from toycircuits.core.optimizer import Optimizer
from toycircuits.core.train_settings import Schedule, TrainSettings
from toycircuits.core.training import DivergedError, Objective, train

SETTINGS: dict[str, Any] = {
    **{"optimizer": "AdamW", "lr": 0.1, "betas": [0.9, 0.98], "weight_decay": 0.5},
    **{"batch_size": None, "unit": "step", "length": 10, "log_every": 1, "checkpoint_every": 5},
    **{"schedule": None, "clip_grad_norm": None, "stop": None, "compile": False},
    **{"weight_seeds": [0], "batch_seeds": None},
}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.parse(SETTINGS | changes, "train")


def some_data(rows: int = 10) -> dict[str, Tensor]:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    return {"x": x, "y": x @ torch.tensor([1.0, -2.0, 3.0]) + 0.5}


def new_model() -> nn.Linear:
    model = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    error: Tensor = model(batch["x"]).squeeze(1) - batch["y"]
    return error.square().mean()


def nothing(model: nn.Module) -> dict[str, float]:
    return {}


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def holds(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    expected = model.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in state.items()
    )


def run(
    folder: Path,
    train_settings: TrainSettings,
    stream: BatchStream | None = None,
    loss: Callable[[Any, Batch], Tensor] = squared_error,
    evaluate: Callable[[Any], dict[str, float]] = nothing,
    key: str = "key",
) -> tuple[list[dict[str, float]], nn.Linear]:
    model = new_model()
    objective = Objective(stream or full_batch(some_data()), loss, evaluate)
    return train(model, objective, train_settings, folder, key, {"name": "test"}), model


# --- the loop ---


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


def score(model: nn.Linear) -> dict[str, float]:
    return {"score": -squared_error(model, some_data()).item()}


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


def draw_three(generator: torch.Generator) -> list[Batch]:
    return [{"x": row} for row in torch.rand(3, 2, generator=generator)]


def new_stream(redraw: bool, seed: int = 0) -> BatchStream:
    return BatchStream(draw_three, torch.Generator().manual_seed(seed), 3, redraw)


def take(stream: BatchStream, n: int) -> list[float]:
    return [stream.next()["x"].sum().item() for _ in range(n)]


@pytest.mark.parametrize("redraw", [True, False])
@pytest.mark.parametrize("done", range(8))
def test_a_restored_stream_goes_on_where_it_was(done: int, redraw: bool) -> None:
    stream = new_stream(redraw)
    take(stream, done)
    state = stream.state()
    expected = take(stream, 8)
    other = new_stream(redraw, seed=1)
    take(other, 2)
    other.restore(*state)
    assert take(other, 8) == expected
    again = new_stream(redraw, seed=1)
    again.restore(*state)
    assert again.state()[1] == state[1]
    assert torch.equal(again.state()[0], state[0])


def test_a_stream_draws_anew_or_replays() -> None:
    drawn, replayed = take(new_stream(redraw=True), 9), take(new_stream(redraw=False), 9)
    assert len(set(drawn)) == 9
    assert replayed == drawn[:3] * 3


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_an_epoch_has_every_row_once_but_those_dropped(drop_last: bool, sizes: list[int]) -> None:
    data = some_data()
    stream = shuffled_batches(data, 4, torch.Generator(), drop_last)
    batches = [stream.next() for _ in sizes]
    assert stream.per_epoch == len(sizes)
    assert [len(batch["x"]) for batch in batches] == sizes
    assert len(stream.next()["x"]) == 4  # the next epoch's first
    rows = torch.cat([batch["y"] for batch in batches])
    assert len(set(rows.tolist()) & set(data["y"].tolist())) == len(rows)
    target = torch.tensor([1.0, -2.0, 3.0])
    for batch in batches:  # columns stay together; a sum of three float32 products, reordered
        torch.testing.assert_close(batch["x"] @ target + 0.5, batch["y"])


@pytest.mark.parametrize("reshuffle", [True, False])
def test_the_order_is_new_each_epoch_or_not(reshuffle: bool) -> None:
    stream = shuffled_batches(some_data(), 4, torch.Generator(), False, reshuffle)
    first, second = (torch.cat([stream.next()["y"] for _ in range(3)]) for _ in range(2))
    assert torch.equal(first, second) is not reshuffle
    assert not torch.equal(first, some_data()["y"])


def test_a_batch_larger_than_the_data_is_the_data_or_an_error() -> None:
    stream = shuffled_batches(some_data(), 11, torch.Generator(), drop_last=False)
    assert [len(stream.next()["x"]) for _ in range(2)] == [10, 10]
    with pytest.raises(InputError, match=r"^train\.batch_size: found 11; allowed is at most 10$"):
        shuffled_batches(some_data(), 11, torch.Generator(), drop_last=True)


def test_the_full_batch_is_given_at_every_step() -> None:
    data = some_data()
    stream = full_batch(data)
    assert stream.per_epoch == 1
    assert all(stream.next() is data for _ in range(3))


# --- resuming ---


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Mortal:
    """A loss that dies at its n-th call and counts its calls."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.calls = dies_at, 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        return squared_error(model, batch)


CASES: dict[str, tuple[TrainSettings, Callable[[], BatchStream]]] = {
    "full-batch": (settings(checkpoint_every=3), lambda: full_batch(some_data())),
    "adam-fresh-blocks": (
        settings(optimizer="Adam", weight_decay=0, batch_size=4, batch_seeds=[0], log_every=4),
        lambda: BatchStream(
            lambda generator: [
                {"x": x, "y": x.sum(1)} for x in torch.randn(3, 4, 3, generator=generator)
            ],
            torch.Generator().manual_seed(0),
        ),
    ),
    "epochs-with-schedule-and-clipping": (
        settings(
            **{"batch_size": 4, "batch_seeds": [0], "unit": "epoch", "length": 4},
            **{"schedule": {"warmup": 2, "peak": 1.3}, "clip_grad_norm": 1.0},
            checkpoint_every=2,
        ),
        lambda: shuffled_batches(some_data(), 4, torch.Generator().manual_seed(0), False),
    ),
    "replayed-epochs-with-early-stop": (
        settings(
            **{"batch_size": 4, "batch_seeds": [0], "unit": "epoch", "length": 40},
            stop={"metric": "score", "at_least": -12.0},
        ),
        lambda: shuffled_batches(some_data(), 4, torch.Generator().manual_seed(0), True, False),
    ),
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "trajectory").iterdir())}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("deaths", [[1], [2], [4], [5], [6], [9], [3, 3], [6, 2, 1, 4]])
def test_a_killed_training_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, deaths: list[int]
) -> None:
    train_settings, stream = CASES[case]
    whole = Mortal()
    rows, model = run(tmp_path / "a", train_settings, stream(), whole, score)
    assert 10 < whole.calls < 20

    monkeypatch.setattr(training, "RESUME_EVERY", -1.0)  # a state is saved before every step
    for death in deaths:
        with pytest.raises(Killed):
            run(tmp_path / "b", train_settings, stream(), Mortal(death), score)
    last = Mortal()
    again, resumed = run(tmp_path / "b", train_settings, stream(), last, score)

    assert last.calls == whole.calls - sum(deaths) + len(deaths)  # no step was done twice
    assert same(weights(resumed), weights(model))
    assert again == rows
    assert [*again[0]] == [*rows[0]]  # the order of the columns, too
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_a_training_killed_between_two_states_repeats_what_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_settings, stream = CASES["epochs-with-schedule-and-clipping"]
    rows, _ = run(tmp_path / "a", train_settings, stream())
    with monkeypatch.context() as patch:
        patch.setattr(training, "RESUME_EVERY", -1.0)
        with pytest.raises(Killed):
            run(tmp_path / "b", train_settings, stream(), Mortal(6))
    with pytest.raises(Killed):  # seven checkpointed steps on, but no state is saved meanwhile
        run(tmp_path / "b", train_settings, stream(), Mortal(7))
    assert run(tmp_path / "b", train_settings, stream())[0] == rows
    assert files(tmp_path / "b") == files(tmp_path / "a")
    assert capsys.readouterr().err.count("resuming at step 5") == 2


def test_a_training_killed_before_its_first_state_starts_over(tmp_path: Path) -> None:
    rows, _ = run(tmp_path / "a", settings())
    with pytest.raises(Killed):
        run(tmp_path / "b", settings(), loss=Mortal(8))
    Trajectory(tmp_path / "b" / "trajectory").save(7, new_model().state_dict(), {})  # a stray
    assert run(tmp_path / "b", settings())[0] == rows
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    rows, model = run(tmp_path, settings())
    before = files(tmp_path)
    again, restored = run(tmp_path, settings(), loss=Mortal(dies_at=1))
    assert again == rows
    assert same(weights(restored), weights(model))
    assert files(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_state_under_another_key_is_ignored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    finished: bool,
) -> None:
    monkeypatch.setattr(training, "RESUME_EVERY", -1.0)
    rows, _ = run(tmp_path / "a", settings())
    if finished:
        run(tmp_path / "b", settings(lr=0.5, checkpoint_every=3), key="other")
    else:
        with pytest.raises(Killed):
            run(tmp_path / "b", settings(lr=0.5), loss=Mortal(7), key="other")
    assert run(tmp_path / "b", settings())[0] == rows
    assert files(tmp_path / "b") == files(tmp_path / "a")
    state = tmp_path / "b" / "resume.safetensors"
    assert f"resume state ignored: {state} belongs to another training" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100], ids=["empty", "noise"])
def test_a_damaged_state_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    rows, _ = run(tmp_path, settings())
    (tmp_path / "resume.safetensors").write_bytes(damage)
    assert run(tmp_path, settings())[0] == rows
    assert "resume state ignored" in capsys.readouterr().err


# --- divergence ---


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
