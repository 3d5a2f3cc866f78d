"""From files to trained models: the trajectories of a run, or the final weights in one file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.core.checkpoints import (
    Checkpoint,
    Trajectory,
    model_folders,
    read_final_weights,
)
from toycircuits.core.config import InputError, TaskSettings, at_key
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.train_settings import TrainSettings


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
        path: the file with the run's final weights, or the folder of its trajectories.

    Raises:
        InputError: nothing of the kind is at `path`, or weights do not fit their settings.
    """
    states = _from_trajectories(path) if path.is_dir() else read_final_weights(path).items()
    for name, (state, metadata) in states:
        model, data_settings = build_model(state, metadata, path / name)
        train = train_settings(metadata, path / name)
        yield TrainedModel(name, model.to(device), data_settings, train, metadata)


def _from_trajectories(folder: Path) -> Iterator[tuple[str, Checkpoint]]:
    for path in model_folders(folder):
        yield path.name, Trajectory(path).load()


def train_settings(metadata: Mapping[str, Any], origin: Path) -> TrainSettings:
    """How the model with these `metadata`, which are those of `origin`, was trained."""
    with at_key(str(origin)):
        task = load_task(str(metadata.get("slice")))
    return task.TrainSettings.parse(metadata.get("train"), f"{origin}: train")


def build_model(
    state: Mapping[str, Tensor], metadata: Mapping[str, Any], origin: Path
) -> tuple[HookedRootModule, TaskSettings]:
    """The model that `state` and `metadata` describe, on the CPU, and the settings of its task.

    Args:
        origin: where both come from, for messages.

    Raises:
        InputError: there is no such slice, or the weights do not fit the settings.
    """
    slice_name = str(metadata.get("slice"))
    with at_key(str(origin)):
        task, architecture = load_task(slice_name), load_model(slice_name)
    data_settings = task.DataSettings.parse(metadata.get("data"), f"{origin}: data")
    settings = architecture.ModelSettings.parse(metadata.get("model"), f"{origin}: model")
    model = architecture.build(settings, data_settings, torch.Generator().manual_seed(0))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{origin}: {' '.join(str(error).split())}") from None
    return model, data_settings
