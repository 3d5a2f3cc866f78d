"""Trained models for notebooks: a hooked model, its data, settings and tables."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.core import paths
from toycircuits.core.checkpoints import Trajectory, read_final_weights, read_tensors
from toycircuits.core.config import InputError, Settings
from toycircuits.core.slices import load_task
from toycircuits.core.tables import read_table
from toycircuits.core.trained_models import build_model, train_settings
from toycircuits.revisions import Files


@dataclass(frozen=True)
class ReleasedRun:
    """A trained model, what it was trained on, and what was found out about its run.

    Attributes:
        model: every hook of TransformerLens works on it; on the CPU.
        data: the tensors of the task, made anew from its settings.
        data_settings: validated settings of the task.
        settings: `data`, `model` and `train` settings, seeds and step, as plain values.
        tables: name -> table of the run, with a row or more for each of its models: `training`,
            `ablations`, and those of `measure`.
    """

    model: HookedRootModule
    data: Mapping[str, Tensor]
    data_settings: Settings
    settings: dict[str, Any]
    tables: Mapping[str, pd.DataFrame]


def load_run(
    name: str,
    step: int | None = None,
    rev: str | None = None,
    *,
    model: str | None = None,
    root: Path | str | None = None,
) -> ReleasedRun:
    """A model of run `name`, by default the final one of its first seed.

    Final weights are in git; those of earlier steps are in DVC's cache after a training here or a
    `dvc pull`.

    Args:
        name: a key under `runs:` of params.yaml.
        step: of a checkpoint; by default the last one.
        rev: a git revision or the name of a `dvc exp` experiment, by default the files as they
            are. The code is the present one.
        model: which model of the run, for example "seed999".
        root: the project folder; by default the one around the working folder or this code.

    Raises:
        InputError: there is no such run, model, step or revision.

    >>> run = load_run("list_copy_10")
    >>> logits, cache = run.model.run_with_cache(run.data["all_inputs"][:1])
    >>> cache["blocks.0.attn.hook_pattern"].shape
    torch.Size([1, 1, 5, 5])
    """
    folder = paths.find_root(root)
    with tempfile.TemporaryDirectory() as scratch:
        files = Files(folder, rev, Path(scratch))
        weights = files.get(paths.weights_file(name))
        if weights is None:
            there = ", ".join(files.names(paths.weights_file("").parent))
            raise InputError(f"run {name!r}: no released weights; runs that have them: {there}")
        models = read_final_weights(weights)
        model = next(iter(models)) if model is None else model
        if model not in models:
            raise InputError(f"run {name!r}: no model {model!r}; there are: {', '.join(models)}")
        state, metadata = models[model]
        if step is not None:
            weights = _checkpoint(files, Trajectory(paths.trajectories(name) / model), step, name)
            state, metadata = read_tensors(weights)
        folder_of_tables = files.get(paths.tables(metadata["experiment"]) / name)
        tables = sorted(folder_of_tables.rglob("*.csv")) if folder_of_tables else []
        read = {path.stem: read_table(path) for path in tables}
    hooked, data_settings = build_model(state, metadata, weights)
    generator = torch.Generator().manual_seed(metadata["data"]["seed"])
    data = load_task(metadata["slice"]).generate(data_settings, generator)
    selected = train_settings(metadata, weights).select(data)
    return ReleasedRun(hooked, selected, data_settings, metadata, read)


def _checkpoint(files: Files, trajectory: Trajectory, step: int, run: str) -> Path:
    """The checkpoint of `step`."""
    hint = f"`toycircuits repro train@{run}` or `dvc pull train@{run}` brings them"
    try:
        found = files.get(trajectory.path(step))
        steps = [int(name) for name in files.names(trajectory.folder)] if found is None else []
    except OSError as error:
        raise InputError(f"run {run!r}: no checkpoints here ({error}); {hint}") from None
    if found is None and not steps:
        raise InputError(f"run {run!r}: no checkpoints here; {hint}")
    if found is None:
        near = ", ".join(map(str, sorted(sorted(steps, key=lambda kept: abs(kept - step))[:3])))
        raise InputError(f"run {run!r}: no checkpoint of step {step}; the nearest: {near}")
    return found
