"""Files of weights: whole or absent, the same bytes every time, and never unpickled."""

import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from toycircuits.core import checkpoints
from toycircuits.core.checkpoints import (
    Trajectory,
    read_final_weights,
    read_tensors,
    write_tensors,
)
from toycircuits.core.config import InputError

METADATA = {"run": "a", "model": {"d_model": 4, "mask": ["1.", "11"]}, "seed": None, "lr": 1e-3}


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 4, generator=generator)
    return {
        "float32": weights,
        "float64": weights.double() / 3,
        "transposed": torch.randn(2, 5, generator=generator).T,
        "integers": torch.arange(6),
        "booleans": torch.tensor([True, False]),
        "bytes": generator.get_state(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "weights.safetensors"
    write_tensors(path, some_tensors(), METADATA)
    return path


def test_what_was_written_is_read(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    expected = some_tensors()
    assert metadata == METADATA
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_the_same_content_gives_the_same_bytes(path: Path) -> None:
    other = path.with_name("other.safetensors")
    backwards = dict(reversed(METADATA.items()))
    write_tensors(other, dict(reversed(some_tensors().items())), backwards)
    assert other.read_bytes() == path.read_bytes()


def test_parameters_are_written_without_their_gradient(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", {"w": torch.ones(2, requires_grad=True)}, {})
    assert not read_tensors(tmp_path / "w")[0]["w"].requires_grad


def test_writing_replaces_what_was_there_and_leaves_nothing_else(path: Path) -> None:
    write_tensors(path, {"new": torch.zeros(1)}, {})
    assert set(read_tensors(path)[0]) == {"new"}
    assert list(path.parent.iterdir()) == [path]


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        content = save(dict(tensors), metadata)
        Path(path).write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", save_half)


def test_a_failing_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(OSError, match="No space left"):
            write_tensors(path, {"new": torch.zeros(100)}, {})
    assert path.read_bytes() == before
    write_tensors(path, {"new": torch.zeros(100)}, {})  # what is left over is not in the way
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_write_adds_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory = Trajectory(tmp_path)
    trajectory.save(0, some_tensors(), {})
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        trajectory.save(1, some_tensors(), {})
    assert trajectory.steps == [0]
    assert not trajectory.path(1).exists()


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("fraction", [0.0, 0.005, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(path: Path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    assert "not a readable safetensors file" in refused(path)


@pytest.mark.parametrize("content", [b"\x80\x04N.", b"\xff" * 1000, bytes(1000), b"PK\x03\x04" * 9])
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "not a readable safetensors file" in refused(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_safetensors_file_of_others_is_refused(
    path: Path, metadata: dict[str, str] | None
) -> None:
    save_file({"w": torch.zeros(1)}, path, metadata)
    assert "has no metadata of toycircuits" in refused(path)


def test_damaged_metadata_are_refused(path: Path) -> None:
    for text, message in (
        (json.dumps(METADATA)[:-1], "metadata: not valid JSON: "),
        (json.dumps([METADATA]), "metadata: found [{'run': 'a'"),
        ('{"a": 1, "a": 2}', "metadata: not valid JSON: the key 'a' is there twice"),
        ('{"a": NaN}', "metadata: not valid JSON: found NaN"),
        ("[" * 100_000, "metadata: not valid JSON: nested too deeply"),
        ("1" * 5000, "metadata: not valid JSON: "),
    ):
        save_file({"w": torch.zeros(1)}, path, {checkpoints.METADATA_KEY: text})
        assert message in refused(path)


def test_a_damaged_header_is_refused_or_read_but_never_a_crash(path: Path) -> None:
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    outcomes = set()
    for position in range(0, header, 3):
        path.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
        try:
            read_tensors(path)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.safetensors", "absent.safetensors: no such file"),
        (".", "cannot be read: Is a directory"),
        (
            "artifacts/data/e.safetensors",
            "no such file; `toycircuits repro --force generate@e` makes it again",
        ),
        (
            "artifacts/trajectories/run/seed0/00000001.safetensors",
            "no such file; `toycircuits repro --force train@run` makes it again",
        ),
        (
            "reports/weights/run.safetensors",
            "no such file; `git checkout` restores it, `toycircuits repro --force release@run`",
        ),
    ],
)
def test_an_absent_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    assert message in refused(tmp_path / name)


def test_a_file_that_may_not_be_read_is_not_taken_for_a_damaged_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refused(path) == f"{path}: cannot be read: Permission denied"
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="folder: cannot be read: Permission denied"):
        Trajectory(path.parent).load()


def test_a_trajectory_is_in_the_order_of_its_steps(tmp_path: Path) -> None:
    trajectory = Trajectory(tmp_path / "trajectory")
    for step in (100, 5, 123_456_789, 20):
        trajectory.save(step, {"w": torch.tensor(step)}, METADATA)
    assert trajectory.steps == [5, 20, 100, 123_456_789]
    states = [(step, state["w"].item()) for step, state in trajectory]
    assert states == [(step, step) for step in trajectory.steps]


def test_a_checkpoint_says_its_step(tmp_path: Path) -> None:
    trajectory = Trajectory(tmp_path)
    for step in (0, 10):
        trajectory.save(step, {"w": torch.tensor(step)}, METADATA)
    for asked, expected in ((None, 10), (10, 10), (0, 0)):
        state, metadata = trajectory.load(asked)
        assert state["w"].item() == expected
        assert metadata == {**METADATA, "step": expected}
    assert "step" not in METADATA


def test_a_trajectory_without_checkpoints_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".00000001.safetensors.partial").touch()
    (tmp_path / "12 (copy).safetensors").touch()
    (tmp_path / "1.safetensors").touch()
    with pytest.raises(InputError, match=f"{tmp_path}: found no checkpoint in this folder"):
        Trajectory(tmp_path).load()
    with pytest.raises(InputError, match=f"{tmp_path}/absent: no such folder"):
        Trajectory(tmp_path / "absent").load()


@pytest.mark.parametrize("step", [8, "7", None, 7.0, True, [7]])
def test_a_checkpoint_of_another_step_is_refused(tmp_path: Path, step: object) -> None:
    trajectory = Trajectory(tmp_path)
    write_tensors(trajectory.path(7), {"w": torch.zeros(1)}, {"step": step})
    with pytest.raises(
        InputError, match=r"00000007.safetensors: metadata.step: found .*expected 7"
    ):
        trajectory.load(7)


MODELS = {"seed0": {"run": "a"}, "LN-seed1": {"run": "a"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": {}}, "metadata.members: "),
        ({"members": None}, "metadata.members: found null; "),
        ({"members": {"seed0": 3}}, "metadata.members.seed0: found 3; "),
        ({"names": ["seed0"]}, "metadata.names: found ['seed0']; expected "),
        ({"names": ["seed0", "LN-seed1", "seed0"]}, "metadata.names: found "),
        ({"names": ["seed0", "seed1"]}, "metadata.names: found "),
        ({"names": "seed0"}, 'metadata.names: found "seed0"; '),
        ({"version": 2}, "metadata.version: unknown key"),
        ({"members": {"../x": {}}, "names": ["../x"]}, "name of a model: found '../x'; "),
        ({"members": {"": {}}, "names": [""]}, "name of a model: found ''; "),
    ],
)
def test_a_file_of_final_weights_has_its_models(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    tensors = {"seed0/w": torch.zeros(1), "LN-seed1/w": torch.ones(1)}
    metadata = {"names": ["seed0", "LN-seed1"], "members": MODELS}
    write_tensors(tmp_path / "w", tensors, metadata)
    assert [*read_final_weights(tmp_path / "w")] == ["seed0", "LN-seed1"]
    write_tensors(tmp_path / "w", tensors, metadata | changes)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/w: {message}")):
        read_final_weights(tmp_path / "w")


@pytest.mark.parametrize("name", ["w", "seed0", "/w", "seed2/w", "seed0.w", "LN-seed1w"])
def test_a_tensor_of_no_model_is_refused(tmp_path: Path, name: str) -> None:
    metadata = {"names": ["seed0", "LN-seed1"], "members": MODELS}
    write_tensors(tmp_path / "w", {"seed0/w": torch.zeros(1), name: torch.zeros(1)}, metadata)
    with pytest.raises(InputError, match=re.escape(f"name of a tensor: found {name!r}")):
        read_final_weights(tmp_path / "w")


def test_a_missing_step_is_named(tmp_path: Path) -> None:
    trajectory = Trajectory(tmp_path)
    trajectory.save(0, some_tensors(), {})
    with pytest.raises(InputError, match="00000007"):
        trajectory.load(7)
