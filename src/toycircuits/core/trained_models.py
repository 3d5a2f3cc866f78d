"""From files to trained models: the trajectories of a run, or the final weights in one file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.core.checkpoints import (
    Checkpoint,
    Trajectory,
    model_folders,
    read_final_weights,
)
from toycircuits.core.config import (
    InputError,
    Settings,
    TaskSettings,
    at_key,
    check_name,
    quoted,
)
from toycircuits.core.lens import LensTransformer, NoConfig
from toycircuits.core.outline import outline
from toycircuits.core.paths import model_name
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.train_settings import TrainSettings
from toycircuits.core.transformer import Transformer

# Settings above this, and above every size of the weights, may say that a model fills the memory.
USUAL = 1024


@dataclass(frozen=True)
class TrainedModel:
    """One trained model of a run.

    Attributes:
        name: unique in its run, made of variant and seeds.
        model: holds the final weights.
        data_settings: settings of the task that it was trained on.
        train_settings: how it was trained.
        metadata: what its file says about it: run, variant, seeds and all settings.
    """

    name: str
    model: HookedRootModule
    data_settings: TaskSettings
    train_settings: TrainSettings
    metadata: Mapping[str, Any]

    def states(self, folder: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Step and state dict of each of its checkpoints, on the model's device.

        Args:
            folder: the trajectories of its run.
        """
        device = next(self.model.parameters()).device
        for step, state in Trajectory(folder / self.name):
            yield step, {name: value.to(device) for name, value in state.items()}

    def label(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with the columns that tell the models of a run apart put first."""
        table = table.copy()
        table.insert(0, "variant", self.metadata["variant"])
        table.insert(1, "seed", self.metadata["weight_seed"])
        return table


def load_final_models(path: Path, device: torch.device) -> Iterator[TrainedModel]:
    """The models of a run with their final weights, by variant and then by seed.

    Args:
        path: the file with the run's final weights, or the folder of its trajectories. Its name is
            that of the run.

    Raises:
        InputError: nothing of the kind is at `path`, its metadata are not those of such a run, or
            weights do not fit their settings.
    """
    states = _from_trajectories(path) if path.is_dir() else read_final_weights(path).items()
    for name, (state, metadata) in states:
        origin = path / name
        check_metadata(metadata, path.stem, name, origin)
        model, data_settings = build_model(state, metadata, origin)
        train = train_settings(metadata, origin)
        yield TrainedModel(name, model.to(device), data_settings, train, metadata)


def _from_trajectories(folder: Path) -> Iterator[tuple[str, Checkpoint]]:
    for path in model_folders(folder):
        yield path.name, Trajectory(path).load()


class _Metadata(Settings):
    """What a file says about each model. The slice's own classes validate the three sections."""

    run: str
    experiment: str
    slice: str
    variant: str
    weight_seed: int = Field(ge=0, lt=2**63)
    batch_seed: int | None = Field(ge=0, lt=2**63)
    step: int = Field(ge=0)
    data: dict[str, Any]
    model: dict[str, Any]
    train: dict[str, Any]


def check_metadata(metadata: Mapping[str, Any], run: str, name: str, origin: Path) -> None:
    """Raise an `InputError` unless `metadata` can be those of the model `name` of `run`.

    Args:
        origin: where they come from, for the message.
    """
    values = _Metadata.parse(metadata, str(origin))
    for key in ("experiment", "slice", "run"):
        check_name(getattr(values, key), f"{origin}.{key}")
    if values.run != run:
        raise InputError(f"{origin}.run: found {quoted(values.run)}; expected {run!r}")
    expected = model_name(values.variant, values.weight_seed, values.batch_seed)
    if name != expected:
        text = f"found {quoted(name)}; its variant and seeds give {quoted(expected)}"
        raise InputError(f"{origin}: name of the model: {text}")


def train_settings(metadata: Mapping[str, Any], origin: Path) -> TrainSettings:
    """How the model with these `metadata`, which are those of `origin`, was trained.

    Raises:
        InputError: there is no such slice, or a setting is not valid.
    """
    with at_key(str(origin)):
        task = load_task(check_name(metadata.get("slice"), "slice"))
    return task.TrainSettings.parse(metadata.get("train"), f"{origin}.train")


def build_model(
    state: Mapping[str, Tensor], metadata: Mapping[str, Any], origin: Path
) -> tuple[HookedRootModule, TaskSettings]:
    """The model that `state` and `metadata` describe, on the CPU, and the settings of its task.

    It is in evaluation mode, and a `Transformer` is a `LensTransformer`.

    Args:
        origin: where both come from, for messages.

    Raises:
        InputError: there is no such slice, or the weights do not fit the settings.
    """
    with at_key(str(origin)):
        slice_name = check_name(metadata.get("slice"), "slice")
        task, architecture = load_task(slice_name), load_model(slice_name)
    data_settings = task.DataSettings.parse(metadata.get("data"), f"{origin}.data")
    settings = architecture.ModelSettings.parse(metadata.get("model"), f"{origin}.model")

    def build() -> HookedRootModule:
        with at_key(str(origin)):
            return architecture.build(settings, data_settings, torch.Generator().manual_seed(0))

    try:
        if _largest(settings.model_dump()) > max(USUAL, *_sizes(state)):
            with outline():  # takes no memory, but three seconds
                _check_fit(state, build(), origin)
        model = build()
        _check_fit(state, model, origin)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch has no class for bad sizes
        raise InputError(f"{origin}: {' '.join(str(error).split())}") from None
    if isinstance(model, Transformer):
        return LensTransformer.of(model), data_settings
    model.cfg = NoConfig(type(model).__name__)
    return model.eval(), data_settings


def _largest(settings: Any) -> int:
    """The largest integer in plain values; 0 if there is none."""
    if isinstance(settings, Mapping):
        settings = [*settings.values()]
    if isinstance(settings, list | tuple):
        return max(map(_largest, settings), default=0)
    return settings if isinstance(settings, int) else 0


def _sizes(state: Mapping[str, Tensor]) -> list[int]:
    """The sizes of all tensors along all their dimensions."""
    return [size for tensor in state.values() for size in tensor.shape]


def _check_fit(state: Mapping[str, Tensor], outline: HookedRootModule, origin: Path) -> None:
    """Raise an `InputError` unless `state` has the parameters of `outline`, of the same types.

    It need not have those that the model freezes.
    """
    for name, parameter in outline.named_parameters():
        expected = f"{parameter.dtype} {tuple(parameter.shape)}"
        if name not in state:
            if not parameter.requires_grad:
                continue
            raise InputError(f"{origin}: {name}: missing; the settings need it: {expected}")
        if (found := f"{state[name].dtype} {tuple(state[name].shape)}") != expected:
            raise InputError(f"{origin}: {name}: found {found}; the settings need {expected}")
