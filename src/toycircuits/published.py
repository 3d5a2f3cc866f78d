"""The published weights: a hooked model, its data and its settings, right after a clone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.checkpoints import read_tensors
from toycircuits.config import InputError, Settings
from toycircuits.layout import find_root, weights_file
from toycircuits.loading import build_model, slice_module, train_settings


@dataclass(frozen=True)
class PublishedRun:
    """A trained model and what it was trained on.

    Attributes:
        model: holds the final weights; every hook of TransformerLens works on it.
        data: the tensors of the task, made anew from its settings.
        data_settings: validated settings of the task.
        settings: `data`, `model` and `train` settings, seeds and step, as plain values.
    """

    model: HookedRootModule
    data: Mapping[str, Tensor]
    data_settings: Settings
    settings: dict[str, Any]


def load_run(name: str, member: str | None = None, root: Path | str | None = None) -> PublishedRun:
    """The final model of run `name`.

    Args:
        name: a key under `runs:` of params.yaml.
        member: which model of the run, for example "seed999"; by default the first.
        root: the project folder; by default the one around the working folder or this code.

    Raises:
        InputError: there is no such run, or no such model in it.

    >>> run = load_run("list_copy_10")
    >>> logits, cache = run.model.run_with_cache(run.data["all_inputs"][:1])
    >>> cache["blocks.0.attn.hook_pattern"].shape
    torch.Size([1, 1, 5, 5])
    """
    file = find_root(root) / weights_file(name)
    if not file.exists():
        runs = sorted(other.stem for other in file.parent.glob("*.safetensors"))
        raise InputError(f"run {name!r}: no published weights; there are: {', '.join(runs)}")
    tensors, metadata = read_tensors(file)
    members = metadata["members"]
    member = next(iter(members)) if member is None else member
    if member not in members:
        raise InputError(f"run {name!r}: no model {member!r}; there are: {', '.join(members)}")
    prefix = f"{member}/"
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    model, data_settings = build_model(state, members[member], file)
    task = slice_module(members[member], "task")
    generator = torch.Generator().manual_seed(members[member]["data"]["seed"])
    data = task.generate(data_settings, generator)
    seen = train_settings(members[member], file).select(data)
    return PublishedRun(model, seen, data_settings, members[member])
