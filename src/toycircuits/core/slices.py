"""What each module of a slice must define, and the functions that import them by name.

A slice is the code of one experiment, or of several that share a task: a folder under
`toycircuits/experiments/` with the modules below. Each protocol says what one of these modules has
to define. Sizes and names of tensors and tables are the slice's own.
"""

import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from toycircuits.core.config import InputError, Settings, TaskSettings

if TYPE_CHECKING:  # whoever imports this module needs none of them
    import pandas as pd
    import plotly.graph_objects as go
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


@runtime_checkable
class Metrics(Protocol):
    """`metrics/measure.py`: what is measured of a model and of its whole trajectory.

    The module may also define `training_start(data, task, train, model)`: a table of what a
    training is given, where a source prints it.
    """

    @property
    def MeasureSettings(self) -> type[Settings]:
        """Settings of the section `measure`."""

    def measure(
        self,
        model: Any,
        states: "Iterable[tuple[int, Mapping[str, Tensor]]]",
        data: "Mapping[str, Tensor]",
        task: Any,
        settings: Any,
    ) -> "tuple[dict[str, pd.DataFrame], dict[str, float]]":
        """Tables of one model by name, and its key metrics by name.

        Args:
            model: holds the final weights.
            states: step and state dict of every checkpoint, in order.
            data: what the training saw of the task's tensors.
            task: the task's `DataSettings`.
            settings: a `MeasureSettings`.
        """


@runtime_checkable
class Ablations(Protocol):
    """`ablations.py`: what is lost without a part of the final model."""

    @property
    def AblateSettings(self) -> type[Settings]:
        """Settings of the section `ablate`."""

    def ablate(
        self, model: Any, data: "Mapping[str, Tensor]", task: Any, settings: Any
    ) -> "pd.DataFrame":
        """One row for each ablation: component, layer, head, method and the scores.

        Args:
            model: holds the final weights.
            data: what the training saw of the task's tensors.
            task: the task's `DataSettings`.
            settings: an `AblateSettings`.
        """


@runtime_checkable
class Figures(Protocol):
    """`figures/draw.py`: tables over all runs, and figures; both come from tables alone."""

    @property
    def RenderSettings(self) -> type[Settings]:
        """Settings of the section `render`."""

    def summarise(
        self, tables: "Mapping[str, pd.DataFrame]", settings: Any
    ) -> "dict[str, pd.DataFrame]":
        """Tables over the runs, variants and seeds of an experiment, by name."""

    def draw(self, tables: "Mapping[str, pd.DataFrame]", settings: Any) -> "dict[str, go.Figure]":
        """Figures by name, from the runs' tables and those of `summarise`."""


def load_task(slice_name: str) -> Task:
    """The module `task` of a slice.

    Raises:
        InputError: there is no such slice.
    """
    return cast(Task, _load(slice_name, "task"))


def load_model(slice_name: str) -> Model:
    """The module `model` of a slice; raises as `load_task`."""
    return cast(Model, _load(slice_name, "model"))


def load_metrics(slice_name: str) -> Metrics:
    """The module `metrics.measure` of a slice; raises as `load_task`."""
    return cast(Metrics, _load(slice_name, "metrics.measure"))


def load_ablations(slice_name: str) -> Ablations:
    """The module `ablations` of a slice; raises as `load_task`."""
    return cast(Ablations, _load(slice_name, "ablations"))


def load_figures(slice_name: str) -> Figures:
    """The module `figures.draw` of a slice; raises as `load_task`."""
    return cast(Figures, _load(slice_name, "figures.draw"))


def _load(slice_name: str, module: str) -> ModuleType:
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
