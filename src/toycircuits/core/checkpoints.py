"""Weights on disk: safetensors files that carry their settings, trajectories, final weights.

Nothing is ever unpickled. A file appears under its name only when it is complete.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from toycircuits.core import inputs
from toycircuits.core.config import InputError, Settings, TaskSettings, quoted
from toycircuits.core.json_text import parse_json
from toycircuits.core.paths import remedy
from toycircuits.core.replace import replacing

METADATA_KEY = "toycircuits"  # a single key: safetensors does not preserve the order of several
MODELS = "members"  # key of the file format: model name -> metadata of that model
MODEL_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}"  # of a folder, and before "/" in names of tensors
Checkpoint: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]  # state dict and metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and JSON-able `metadata` to `path`, under a temporary name until complete.

    Raises:
        OSError: the disk is full, or the folder cannot be written; an older file stays as it was.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as partial:
            save_file(contiguous, partial, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise OSError(None, f"not written: {error}", str(path)) from error


def read_tensors(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Tensors, on `device`, and metadata that `write_tensors` wrote.

    Raises:
        InputError: the file is absent, cannot be read or is damaged, or `write_tensors` did not
            write it.
    """
    _check_readable(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: not a readable safetensors file: {reason}{remedy(path)}"
        ) from None
    if text is None:
        raise InputError(f"{path}: this safetensors file has no metadata of toycircuits")
    metadata = parse_json(text, f"{path}: metadata", remedy(path))
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: metadata: found {quoted(metadata)}; allowed: an object")
    return tensors, metadata


def _check_readable(path: Path) -> None:
    """Raise an `InputError` if no file is at `path`, or if it may not be read."""
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{remedy(path)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_data(path: Path, settings: TaskSettings, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors that `generate` made for a task with these `settings`, on `device`.

    Raises:
        InputError: they were made with other settings, or their names or shapes are wrong.
    """
    inputs.note(path)
    tensors, metadata = read_tensors(path, device)
    if metadata.get("data") != json.loads(settings.model_dump_json()):
        raise InputError(f"{path}: made with other settings of `data`{remedy(path)}")
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = settings.shapes
    for name in sorted({*actual, *expected}):
        if actual.get(name) != expected.get(name):
            shapes = f"found {actual.get(name)}; expected {expected.get(name)}"
            raise InputError(f"{path}: shape of {name}: {shapes}")
    return tensors


def check_step(metadata: Mapping[str, Any], step: int, path: Path) -> None:
    """Raise an `InputError` unless `metadata`, those of the file at `path`, are of `step`."""
    found = metadata.get("step")
    if found != step or type(found) is not int:
        text = f"found {quoted(found)}; expected {step}, by the name of the file"
        raise InputError(f"{path}: metadata.step: {text}{remedy(path)}")


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints of one trained model: a folder with one file for each step."""

    folder: Path

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        names = [path.name for path in _entries(self.folder)]
        checkpoints = [re.fullmatch(r"([0-9]{8,})\.safetensors", name) for name in names]
        if not (steps := sorted(int(found[1]) for found in checkpoints if found)):
            raise InputError(f"{self.folder}: found no checkpoint in this folder")
        return steps

    def path(self, step: int) -> Path:
        """The file of the checkpoint of `step`."""
        return self.folder / f"{step:08d}.safetensors"

    def save(self, step: int, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Add the checkpoint of `step`."""
        write_tensors(self.path(step), state, {**metadata, "step": step})

    def load(self, step: int | None = None) -> Checkpoint:
        """State dict and metadata at `step`, by default the last.

        Raises:
            InputError: as `read_tensors`, or the file is the checkpoint of another step.
        """
        step = self.steps[-1] if step is None else step
        inputs.note(self.path(step))
        state, metadata = read_tensors(self.path(step))
        check_step(metadata, step, self.path(step))
        return state, metadata

    def __iter__(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for step in self.steps:
            yield step, self.load(step)[0]


def model_folders(folder: Path) -> list[Path]:
    """The trajectories in `folder`, by variant and then by seed.

    Seeds are numbers: the model of seed 999 comes before that of seed 1000.

    Raises:
        InputError: there is none, or the folder cannot be read.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("LN-seed10", "seed1000", "LN-seed9", "seed999"):
    ...     (folder / name).mkdir()
    >>> [path.name for path in model_folders(folder)]
    ['LN-seed9', 'LN-seed10', 'seed999', 'seed1000']
    """

    def key(path: Path) -> list[str | int]:
        # Texts and numbers alternate, so that text is compared with text, number with number.
        parts = re.split(r"([0-9]+)", path.name)
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    folders = sorted((path for path in _entries(folder) if path.is_dir()), key=key)
    if not folders:
        raise InputError(f"{folder}: found no trajectory in this folder{remedy(folder)}")
    return folders


def _entries(folder: Path) -> list[Path]:
    """What is in `folder`.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    try:
        return [*folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no such folder{remedy(folder)}") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None


def write_final_weights(path: Path, folder: Path) -> None:
    """Write the last checkpoint of each trajectory in `folder` to one file at `path`.

    Raises:
        InputError: there is no trajectory.
        OSError: as `write_tensors`.
    """
    tensors: dict[str, Tensor] = {}
    models: dict[str, dict[str, Any]] = {}
    for trajectory in model_folders(folder):
        state, models[trajectory.name] = Trajectory(trajectory).load()
        tensors |= {f"{trajectory.name}/{key}": value for key, value in state.items()}
    write_tensors(path, tensors, {"names": [*models], MODELS: models})


class _FinalWeights(Settings):
    """The metadata of a file of `write_final_weights`."""

    names: tuple[str, ...] | None = None  # files of the first versions have none
    members: dict[str, dict[str, Any]] = Field(min_length=1)


def read_final_weights(path: Path) -> dict[str, Checkpoint]:
    """The models in a file of `write_final_weights`, by name and in their order.

    Raises:
        InputError: the file is absent or damaged, or holds something else.
    """
    inputs.note(path)
    tensors, metadata = read_tensors(path)
    header = _FinalWeights.parse(metadata, f"{path}: metadata")
    names = header.names or (*header.members,)
    for name in {*names, *header.members}:
        if not re.fullmatch(MODEL_NAME, name):
            text = "allowed: letters, digits, `_`, `-` and `.`"
            raise InputError(f"{path}: name of a model: found {quoted(name)}; {text}")
    if sorted(names) != sorted(header.members):
        text = f"found {quoted([*names])}; expected the keys of {MODELS}, {[*header.members]}"
        raise InputError(f"{path}: metadata.names: {text}{remedy(path)}")
    states: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, value in tensors.items():
        name, separator, parameter = key.partition("/")
        if not separator or name not in states:
            text = "allowed: the name of a model, `/` and the name of a parameter"
            raise InputError(f"{path}: name of a tensor: found {quoted(key)}; {text}")
        states[name][parameter] = value
    return {name: (states[name], metadata[MODELS][name]) for name in names}
