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

from toycircuits import layout
from toycircuits.checkpoints import Trajectory, read_tensors
from toycircuits.config import InputError, Settings
from toycircuits.loading import build_model, slice_module, train_settings
from toycircuits.revisions import Files
from toycircuits.tables import read_table


@dataclass(frozen=True)
class PublishedRun:
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
    member: str | None = None,
    root: Path | str | None = None,
) -> PublishedRun:
    """A model of run `name`, by default the final one of its first seed.

    Final weights are in git; those of earlier steps in DVC's cache, after a training here or
    `dvc pull`.

    Args:
        name: a key under `runs:` of params.yaml.
        step: of a checkpoint.
        rev: a git revision or the name of a `dvc exp` experiment, by default the files as they
            are. The code is the present one.
        member: which model of the run, for example "seed999".
        root: the project folder; by default the one around the working folder or this code.

    Raises:
        InputError: there is no such run, model, step or revision.

    >>> run = load_run("list_copy_10")
    >>> logits, cache = run.model.run_with_cache(run.data["all_inputs"][:1])
    >>> cache["blocks.0.attn.hook_pattern"].shape
    torch.Size([1, 1, 5, 5])
    """
    folder = layout.find_root(root)
    with tempfile.TemporaryDirectory() as scratch:
        files = Files(folder, rev, Path(scratch))
        weights = files.get(layout.weights_file(name))
        if weights is None:
            there = ", ".join(files.names(layout.weights_file("").parent))
            hint = "those with `publish: false` in params.yaml have none"
            raise InputError(f"run {name!r}: no published weights ({hint}); there are: {there}")
        tensors, metadata = read_tensors(weights)
        members = metadata["members"]
        names = metadata.get("names", [*members])
        if not members:
            raise InputError(f"{weights}: found no model in it; `dvc repro publish` makes it anew")
        member = names[0] if member is None else member
        if member not in members:
            found = ", ".join(names)
            raise InputError(f"run {name!r}: no model {member!r}; there are: {found}")
        own = members[member]
        experiment = own["experiment"]
        if step is None:
            prefix = f"{member}/"
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        else:
            trajectory = Trajectory(layout.trajectories(experiment, name) / member)
            weights = _checkpoint(files, trajectory, step, name)
            state, own = read_tensors(weights)
        tables = files.get(layout.tables(experiment) / name)
        paths = sorted(tables.rglob("*.csv")) if tables else []
        told = {path.stem: read_table(path) for path in paths}
    model, data_settings = build_model(state, own, weights)
    generator = torch.Generator().manual_seed(own["data"]["seed"])
    data = slice_module(own, "task").generate(data_settings, generator)
    seen = train_settings(own, weights).select(data)
    return PublishedRun(model, seen, data_settings, own, told)


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
