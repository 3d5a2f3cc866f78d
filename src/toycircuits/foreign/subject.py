"""The tables of one model with somebody's weights, made by the stages' own functions."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.core import paths
from toycircuits.core.analyses import load_ablations, load_metrics
from toycircuits.core.config import Run, at_key
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.tables import read_tables
from toycircuits.core.train_run import RunSettings

Tables: TypeAlias = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Subject:
    """What an analysis needs beside the weights.

    Attributes:
        name: of the weights.
        data: the tensors of the task, generated from the settings.
    """

    run: Run
    settings: RunSettings
    variant: str
    name: str
    data: Mapping[str, Tensor]

    @classmethod
    def of(cls, run: Run, settings: RunSettings, variant: str, name: str) -> "Subject":
        """That for weights called `name`, as a model of this variant of `run`."""
        generator = torch.Generator().manual_seed(settings.data.seed)
        data = load_task(run.entry.slice).generate(settings.data, generator)
        return cls(run, settings, variant, name, settings.train.select(data))

    @property
    def last_step(self) -> int:
        """The last step of a training of the run."""
        task, train = load_task(self.run.entry.slice), self.settings.train
        stream = task.batches(self.data, self.settings.data, train, torch.Generator())
        return train.length * (stream.per_epoch if train.unit == "epoch" else 1)

    def untrained(self) -> HookedRootModule:
        """The network before training, of the first seed of the run."""
        train = self.settings.train
        build = load_model(self.run.entry.slice).build
        generator = train.weight_generator(train.weight_seeds[0])
        return build(self.settings.models[self.variant], self.settings.data, generator).eval()

    def tables(self, model: HookedRootModule) -> Tables:
        """The tables of `model`, by name, as they would be read from files of the run."""
        slice_name, task, train = self.run.entry.slice, self.settings.data, self.settings.train
        metrics, ablations = load_metrics(slice_name), load_ablations(slice_name)
        measuring = self.run.section("measure", metrics.MeasureSettings)
        ablating = self.run.section("ablate", ablations.AblateSettings)
        with at_key(self.run.key):
            measuring.check(task, train)
            ablating.check(task, train)
            initial = self.untrained().state_dict()
            states = [(0, initial), (self.last_step, _copy(model))]
            tables, measured = metrics.measure(model, states, self.data, task, measuring)
            tables["ablations"] = ablations.ablate(model, self.data, task, ablating)
        known = {name: value for name, value in measured.items() if not is_a_step(name)}
        tables["metrics"] = pd.DataFrame({"metric": [*known], "value": [*known.values()]})
        # Nobody knows the steps of the training: the last column of such a table holds steps.
        lasting = {name: table for name, table in tables.items() if table.columns[-1] != "step"}
        return self._as_read(lasting)

    def _as_read(self, tables: Mapping[str, pd.DataFrame]) -> Tables:
        """`tables` with the columns that name a model, as they are after writing and reading."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / self.run.name
            folder.mkdir()
            for name, table in tables.items():
                table = table.copy()
                table.insert(0, "variant", self.variant)
                table.insert(1, "seed", 0)  # files of tables have numbers there
                path = folder / f"{name}.csv"
                table.to_csv(path, index=False, float_format=paths.FLOAT_FORMAT)
            tables = read_tables(Path(scratch), [self.run.name])
        return {name: table.assign(seed=self.name) for name, table in tables.items()}


def _copy(model: HookedRootModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_a_step(metric: str) -> bool:
    """Whether the metric of this name is a step of the training."""
    return metric == "step" or metric.endswith(("_step", "_end"))
