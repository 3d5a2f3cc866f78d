"""A training that was killed continues, and ends with the same bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_trainings import Killed, Mortal, new_model, run, same, score, settings, some_data, weights

from toycircuits.core import training
from toycircuits.core.batches import BatchStream, full_batch, shuffled_batches
from toycircuits.core.checkpoints import Trajectory, read_tensors, write_tensors
from toycircuits.core.config import InputError
from toycircuits.core.train_settings import TrainSettings
from toycircuits.core.training import StoppedError

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


@pytest.mark.parametrize(
    "change",
    [
        *({"rows": 3}, {"rows": [["step"]]}, {"position": "first"}, {"tensors": {}}),
        {"tensors": {"stream": torch.zeros(1)}},
    ],
    ids=str,
)
def test_a_state_of_this_key_and_another_content_is_named(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    run(tmp_path, settings())
    file = tmp_path / "resume.safetensors"
    tensors, progress = read_tensors(file)
    tensors = change.pop("tensors", tensors)
    write_tensors(file, tensors, progress | change)
    with pytest.raises(InputError, match=r"resume\.safetensors: its key is that .*; remove it"):
        run(tmp_path, settings())


# --- divergence ---


@pytest.mark.parametrize("step", [4, 10], ids=["on-the-way", "in-the-last-step"])
def test_a_signal_stops_the_training_after_its_step(tmp_path: Path, step: int) -> None:
    """Also in the last step: the caller must not go on to the next model."""
    calls = 0

    def signal_at_step(model: torch.nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == step + 1:  # the first evaluation is that of step 0
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(StoppedError, match="the same command continues from there") as stop:
        run(tmp_path / "a", settings(), full_batch(some_data()), evaluate=signal_at_step)
    assert stop.value.signal == signal.SIGTERM
    rows, model = run(tmp_path / "a", settings(), full_batch(some_data()))
    whole_rows, whole = run(tmp_path / "b", settings(), full_batch(some_data()))
    assert len(rows) == len(whole_rows) == 11
    assert same(weights(model), weights(whole))
