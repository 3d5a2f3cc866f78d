"""What the analyses of a slice must define, and the functions that import them by name.

slices.py has the modules of a slice that trainings import. An edit here makes no training stale.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from toycircuits.core.config import Settings
from toycircuits.core.slices import load_module

if TYPE_CHECKING:  # whoever imports this module needs none of them
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor


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


def load_metrics(slice_name: str) -> Metrics:
    """The module `metrics.measure` of a slice; raises as `load_module`."""
    return cast(Metrics, load_module(slice_name, "metrics.measure"))


def load_ablations(slice_name: str) -> Ablations:
    """The module `ablations` of a slice; raises as `load_module`."""
    return cast(Ablations, load_module(slice_name, "ablations"))


def load_figures(slice_name: str) -> Figures:
    """The module `figures.draw` of a slice; raises as `load_module`."""
    return cast(Figures, load_module(slice_name, "figures.draw"))
