"""Trained models for notebooks: `load_run` gives a hooked model, its data, settings and tables."""

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.core import paths
from toycircuits.core.checkpoints import (
    Trajectory,
    check_step,
    read_final_weights,
    read_tensors,
)
from toycircuits.core.config import InputError, TaskSettings
from toycircuits.core.lens import LensTransformer, targets_are_next_tokens
from toycircuits.core.slices import load_task
from toycircuits.core.tables import read_table, table_files
from toycircuits.core.trained_models import build_model, check_metadata, train_settings
from toycircuits.revisions import Files


@dataclass(frozen=True)
class ReleasedRun:
    """A trained model with its data, its settings and the tables of its run.

    Attributes:
        model: the model, on the CPU, in evaluation mode; all hooks of TransformerLens work on it,
            and TransformerLens's tools on those with tokens, which are `LensTransformer`s.
        data: the tensors of the task, generated again from its settings.
        data_settings: the validated settings of the task.
        settings: settings (`data`, `model`, `train`), seeds and step, as plain values.
        tables: name -> table of the run: `training`, `ablations` and the tables of the stage
            `measure`. Each has rows for all models of the run.
    """

    model: HookedRootModule
    data: Mapping[str, Tensor]
    data_settings: TaskSettings
    settings: dict[str, Any]
    tables: Mapping[str, pd.DataFrame]


@torch.inference_mode(False)  # the model can be trained, whatever mode the caller is in
def load_run(
    name: str,
    step: int | None = None,
    rev: str | None = None,
    *,
    model: str | None = None,
    root: Path | str | None = None,
) -> ReleasedRun:
    """Load a model of the run `name`, by default its first model after the last training step.

    Git carries the final weights of released runs. Checkpoints of earlier steps are in DVC's
    cache, after you have trained the run or called `dvc pull`.

    Args:
        name: a run that `released:` of params.yaml lists.
        step: the training step of a checkpoint; by default the last one.
        rev: a git revision or the name of a `dvc exp` experiment; by default the files as they
            are. Only files are read as of `rev`: the code that loads them is always this one.
        model: the name of a model of the run, for example "seed999"; by default the first.
        root: the project folder; by default the one around the working folder or this code.

    Raises:
        InputError: there is no such run, model, step, revision or project.

    >>> run = load_run("list_copy_10")
    >>> logits, cache = run.model.run_with_cache(run.data["all_inputs"][:1])
    >>> cache["blocks.0.attn.hook_pattern"].shape
    torch.Size([1, 1, 5, 5])
    """
    if root == "":
        raise InputError("root: found ''; allowed: the project folder, or None")
    folder = paths.find_root(root)
    with tempfile.TemporaryDirectory() as scratch:
        files = Files(folder, rev, Path(scratch))
        weights = files.get(paths.weights_file(name))
        if weights is None:
            allowed = ", ".join(files.names(paths.WEIGHTS))
            raise InputError(f"run {name!r}: has no released weights; runs with them: {allowed}")
        models = read_final_weights(weights)
        model = next(iter(models)) if model is None else model
        if model not in models:
            raise InputError(f"run {name!r}: has no model {model!r}; it has: {', '.join(models)}")
        state, metadata = models[model]
        if step is not None:
            weights = _checkpoint(files, Trajectory(paths.trajectories(name) / model), step, name)
            state, metadata = read_tensors(weights)
            check_step(metadata, step, weights)
        origin = weights / model if step is None else weights
        check_metadata(metadata, name, model, origin)
        tables = _tables(files, metadata["experiment"], name, origin)
        hooked, data_settings = build_model(state, metadata, origin)
    _check_memory(data_settings, origin)
    generator = torch.Generator().manual_seed(data_settings.seed)
    data = load_task(metadata["slice"]).generate(data_settings, generator)
    selected = train_settings(metadata, origin).select(data)
    if isinstance(hooked, LensTransformer):
        hooked.next_token = targets_are_next_tokens(selected)
    return ReleasedRun(hooked, selected, data_settings, metadata, tables)


def _tables(files: Files, experiment: str, run: str, origin: Path) -> dict[str, pd.DataFrame]:
    """The tables of `run`, by name.

    Raises:
        InputError: there are none, because `origin` names another experiment or they are absent;
            or one of them is damaged.
    """
    path = paths.tables(experiment) / run
    if (folder := files.get(path)) is None:
        hint = f"`git checkout` restores them, and `toycircuits repro {run}` makes them"
        text = f"{origin} says that they are there"
        raise InputError(f"{path}: found no tables of this run, but {text}; {hint}")
    return {path.stem: read_table(path) for path in table_files(folder)}


def _check_memory(settings: TaskSettings, origin: Path) -> None:
    """Raise an `InputError` if the data that these `settings` describe do not fit in memory."""
    size = 4 * sum(math.prod(shape) for shape in settings.shapes.values())  # at least
    if size > (memory := psutil.virtual_memory().total):
        gib = 2**30
        raise InputError(
            f"{origin}.data: these data need {size / gib:,.1f} GiB of memory at least; "
            f"this machine has {memory / gib:,.1f}"
        )


def _checkpoint(files: Files, trajectory: Trajectory, step: int, run: str) -> Path:
    """The checkpoint of `step` in `trajectory`.

    Raises:
        InputError: it is not here; the message says what is, and how to get checkpoints.
    """
    hint = f"`dvc pull train@{run}` brings them, `toycircuits repro --force train@{run}` trains"
    try:
        checkpoint = files.get(trajectory.path(step))
        names = files.names(trajectory.folder) if checkpoint is None else []
    except FileNotFoundError as error:
        raise InputError(f"run {run!r}: no checkpoints here ({error}); {hint}") from None
    except InputError as error:  # DVC's cache lacks the list of checkpoints, as in a clone
        raise InputError(f"run {run!r}: {error}; {hint}") from None
    if checkpoint is not None:
        return checkpoint
    if not names:
        raise InputError(f"run {run!r}: no checkpoints here; {hint}")
    steps = [int(name) for name in names if re.fullmatch("[0-9]+", name)]
    nearest = sorted(steps, key=lambda other: abs(other - step))[:3]
    listed = ", ".join(map(str, sorted(nearest)))
    raise InputError(f"run {run!r}: no checkpoint of step {step}; the nearest: {listed}")
