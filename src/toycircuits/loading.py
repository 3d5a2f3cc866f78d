"""From files to hooked models, and the other way round for what is published."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.checkpoints import Trajectory
from toycircuits.config import InputError, Settings, at_key
from toycircuits.members import member_folders
from toycircuits.training import TrainSettings


@dataclass(frozen=True)
class Member:
    """One trained model of a run.

    Attributes:
        name: unique in its run, made of variant and seeds.
        model: holds the final weights.
        data_settings: settings of the task that it was trained on.
        train_settings: how it was trained.
        metadata: what the checkpoint says of itself.
    """

    name: str
    model: HookedRootModule
    data_settings: Settings
    train_settings: TrainSettings
    metadata: dict[str, Any]
    trajectory: Trajectory

    def states(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(step, state dict) of every checkpoint, on the model's device."""
        device = next(self.model.parameters()).device
        for step, state in self.trajectory:
            yield step, {name: value.to(device) for name, value in state.items()}

    def label(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with the columns that tell the models of a run apart put first."""
        table = table.copy()
        table.insert(0, "variant", self.metadata["variant"])
        table.insert(1, "seed", self.metadata["weight_seed"])
        return table


def load_members(folder: Path, device: torch.device) -> Iterator[Member]:
    """The models whose trajectories stand in `folder`, by variant and then by seed."""
    paths = member_folders(folder)
    if not paths:
        raise InputError(f"{folder}: no trajectory here")
    for path in paths:
        trajectory = Trajectory(path)
        state, metadata = trajectory.load()
        model, data_settings = build_model(state, metadata, path)
        train = train_settings(metadata, path)
        yield Member(path.name, model.to(device), data_settings, train, metadata, trajectory)


def slice_module(metadata: dict[str, Any], name: str) -> ModuleType:
    """Module `name` ("task", "model", ...) of the slice that a checkpoint belongs to.

    Raises:
        InputError: it says that it belongs to none, or to one that is not there.
    """
    found = str(metadata.get("slice"))
    try:
        return importlib.import_module(f"toycircuits.experiments.{found}.{name}")
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("toycircuits"):
            raise
        raise InputError(f"slice: found {found!r}; the package has none of this name") from None


def train_settings(metadata: dict[str, Any], origin: Path) -> TrainSettings:
    """How the model of a checkpoint was trained."""
    with at_key(str(origin)):
        task = slice_module(metadata, "task")
    return task.TrainSettings.parse(metadata.get("train"), f"{origin}: train")


def build_model(
    state: dict[str, Tensor], metadata: dict[str, Any], origin: Path
) -> tuple[HookedRootModule, Settings]:
    """The model that `state` and `metadata` describe, and the settings of its task.

    Raises:
        InputError: the weights do not fit the settings.
    """
    with at_key(str(origin)):
        task, architecture = slice_module(metadata, "task"), slice_module(metadata, "model")
    data_settings = task.DataSettings.parse(metadata.get("data"), f"{origin}: data")
    settings = architecture.ModelSettings.parse(metadata.get("model"), f"{origin}: model")
    model = architecture.build(settings, data_settings, torch.Generator().manual_seed(0))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{origin}: {' '.join(str(error).split())}") from None
    return model, data_settings
