"""What the analyses of a slice must define, and the functions that import them by name.

A slice is a folder in experiments/, with a task and its analyses. slices.py does the same for the
modules of a slice that trainings import. The two are apart so that an edit of this one does not
make trainings stale: DVC runs a training again if a module that it imports has changed.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from toycircuits.core.config import Settings
from toycircuits.core.slices import load_module

if TYPE_CHECKING:  # a stage that imports this module may not need them
    import pandas as pd
    from torch import Tensor

    from toycircuits.core.plotting import Drawing


@runtime_checkable
class Metrics(Protocol):
    """`metrics/measure.py`: measurements of a model and of all its checkpoints.

    The module may also define `training_start(data, task, train, model)`. It returns a table of
    what a training starts from, such as the first batch, to compare with what a study printed.
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
            data: the tensors of the task by name, as the training saw them.
            task: the task's `DataSettings`.
            settings: a `MeasureSettings`.
        """


@runtime_checkable
class Ablations(Protocol):
    """`ablations.py`: how well the final model works without each of its parts."""

    @property
    def AblateSettings(self) -> type[Settings]:
        """Settings of the section `ablate`."""

    def ablate(
        self, model: Any, data: "Mapping[str, Tensor]", task: Any, settings: Any
    ) -> "pd.DataFrame":
        """One row for each ablation: component, layer, head, method and the scores.

        Args:
            model: holds the final weights.
            data: the tensors of the task by name, as the training saw them.
            task: the task's `DataSettings`.
            settings: an `AblateSettings`.
        """


@runtime_checkable
class Figures(Protocol):
    """`figures/draw.py`: makes summary tables and figures from the tables of the runs."""

    @property
    def RenderSettings(self) -> type[Settings]:
        """Settings of the section `render`."""

    def summarise(
        self, tables: "Mapping[str, pd.DataFrame]", settings: Any
    ) -> "dict[str, pd.DataFrame]":
        """Tables that summarise the runs, variants and seeds of an experiment, by name."""

    def draw(self, tables: "Mapping[str, pd.DataFrame]", settings: Any) -> "Mapping[str, Drawing]":
        """Figures by name, in the order of the page. Nothing is drawn before `make` is called.

        Tables may be missing. A figure whose table is missing raises a `KeyError` when it is made,
        and the others can still be made. If the content of a table decides whether there is a
        figure, and the table is missing, then the figure is left out.

        Args:
            tables: those of the runs and those that `summarise` returned, by name.
            settings: a `RenderSettings`.
        """


def load_metrics(slice_name: str) -> Metrics:
    """The module `metrics.measure` of a slice; raises what `load_module` raises."""
    return cast(Metrics, load_module(slice_name, "metrics.measure"))


def load_ablations(slice_name: str) -> Ablations:
    """The module `ablations` of a slice; raises what `load_module` raises."""
    return cast(Ablations, load_module(slice_name, "ablations"))


def load_figures(slice_name: str) -> Figures:
    """The module `figures.draw` of a slice; raises what `load_module` raises."""
    return cast(Figures, load_module(slice_name, "figures.draw"))
