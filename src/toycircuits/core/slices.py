"""What the task and the model of a slice must define, and the functions that import them by name.

A slice is the code of one experiment, or of several that share a task: a folder under
`toycircuits/experiments/`. Each protocol says what one of its modules has to define. Sizes and
names of tensors are the slice's own. analyses.py has the modules that no training imports.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from toycircuits.core.config import InputError, Settings, TaskSettings

if TYPE_CHECKING:  # whoever imports this module needs none of them
    import torch
    from torch import Tensor
    from transformer_lens import HookedRootModule

    from toycircuits.core.batches import BatchStream
    from toycircuits.core.train_settings import TrainSettings

PACKAGE = "toycircuits.experiments"


@runtime_checkable
class Task(Protocol):
    """`task.py`: the data, the batches, the loss and what the training log tells."""

    @property
    def DataSettings(self) -> type[TaskSettings]:
        """Settings of the section `data`."""

    @property
    def TrainSettings(self) -> "type[TrainSettings]":
        """Settings of the section `train`."""

    def generate(self, settings: Any, generator: "torch.Generator") -> "dict[str, Tensor]":
        """The tensors of the task, by name, on the CPU.

        Args:
            settings: a `DataSettings`.
            generator: the only source of randomness.
        """

    def batches(
        self,
        data: "Mapping[str, Tensor]",
        settings: Any,
        train: Any,
        generator: "torch.Generator",
    ) -> "BatchStream":
        """The batches of one training.

        Args:
            data: what `TrainSettings.select` leaves of the tensors of `generate`.
            settings: a `DataSettings`.
            train: a `TrainSettings`.
            generator: the only source of randomness.
        """

    def loss(self, model: Any, batch: "Mapping[str, Tensor]") -> "Tensor":
        """The scalar that a training minimises, differentiable in the parameters of `model`."""

    def evaluate(self, model: Any, data: "Mapping[str, Tensor]") -> dict[str, float]:
        """What the training log tells of `model`, under the names in `DataSettings.metrics`."""


@runtime_checkable
class Model(Protocol):
    """`model.py`: the architecture."""

    @property
    def ModelSettings(self) -> type[Settings]:
        """Settings of the section `model`."""

    def build(self, settings: Any, data: Any, generator: "torch.Generator") -> "HookedRootModule":
        """The model with its initial weights, on the CPU.

        Args:
            settings: a `ModelSettings`.
            data: the task's `DataSettings`.
            generator: the only source of randomness.
        """


def load_task(slice_name: str) -> Task:
    """The module `task` of a slice.

    Raises:
        InputError: there is no such slice.
    """
    return cast(Task, load_module(slice_name, "task"))


def load_model(slice_name: str) -> Model:
    """The module `model` of a slice; raises as `load_task`."""
    return cast(Model, load_module(slice_name, "model"))


def load_module(slice_name: str, module: str) -> ModuleType:
    """A module of a slice by its name, such as `metrics.measure`.

    Raises:
        InputError: there is no such slice, or it lacks the module.
    """
    try:
        return importlib.import_module(f"{PACKAGE}.{slice_name}.{module}")
    except ModuleNotFoundError as error:
        folder = f"{PACKAGE}.{slice_name}"
        if not error.name or not f"{folder}.{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        if error.name in (f"{folder}.{module}", f"{folder}.{module.partition('.')[0]}"):
            raise InputError(f"{error.name.replace('.', '/')}: missing from the slice") from None
        text = f"slice: found {slice_name!r}; there is no such folder under toycircuits/experiments"
        raise InputError(text) from None
