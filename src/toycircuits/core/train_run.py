"""Train all models of a run, one after the other; it knows no task and writes no result."""

import functools
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toycircuits.core import inputs
from toycircuits.core.config import Run, Settings, TaskSettings, at_key
from toycircuits.core.generators import seeded
from toycircuits.core.gradients import can_compile
from toycircuits.core.paths import model_name
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.train_settings import TrainSettings
from toycircuits.core.training import Objective, train


@dataclass(frozen=True)
class RunSettings:
    """The validated settings of a run that its training depends on.

    Attributes:
        models: variant -> settings of the model.
    """

    data: TaskSettings
    train: TrainSettings
    models: Mapping[str, Settings]


def read_settings(run: Run) -> RunSettings:
    """Validate what the training of `run` depends on.

    Raises:
        InputError: a setting is wrong, or does not go with another.
    """
    task, architecture = load_task(run.entry.slice), load_model(run.entry.slice)
    data = run.section("data", task.DataSettings)
    settings = run.section("train", task.TrainSettings)
    models = {
        variant: run.section("model", architecture.ModelSettings, variant)
        for variant in run.variants
    }
    with at_key(run.key):
        settings.check(data, settings)
    return RunSettings(data, settings, models)


def train_run(
    run: Run,
    settings: RunSettings,
    data: Mapping[str, Tensor],
    data_digest: str,
    folder: Path,
    device: torch.device,
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Train one model for each variant and pair of seeds; a killed run continues where it was.

    Args:
        data: the tensors of the task, on `device`.
        data_digest: hash of the file that they came from.
        folder: takes the state and the checkpoints of each model; no other process may use it.

    Returns:
        The rows of the training log, and model name -> folder of its checkpoints.

    Raises:
        InputError: a setting does not go with the data.
        DivergedError, StoppedError: as `training.train`, with the name of the model before it.
    """
    task, architecture = load_task(run.entry.slice), load_model(run.entry.slice)
    train_settings = settings.train
    if train_settings.compile and not can_compile(device):  # checkpoints record what was done
        train_settings = train_settings.model_copy(update={"compile": False})
    selected = train_settings.select(data)
    rows: list[dict[str, Any]] = []
    trajectories: dict[str, Path] = {}
    models = list(itertools.product(settings.models, train_settings.seed_pairs))
    for number, (variant, (weight_seed, batch_seed)) in enumerate(models, start=1):
        identity = {"variant": variant, "weight_seed": weight_seed, "batch_seed": batch_seed}
        metadata = {
            **{"run": run.name, "experiment": run.entry.experiment, "slice": run.entry.slice},
            **identity,
            **{"data": settings.data.model_dump(), "train": train_settings.model_dump()},
            "model": settings.models[variant].model_dump(),
        }
        key = result_key(metadata | {"device": str(device)}, data_digest)
        weights = train_settings.weight_generator(weight_seed)
        with at_key(run.key):
            model = architecture.build(settings.models[variant], settings.data, weights).to(device)
        order = weights if batch_seed is None else seeded(batch_seed)
        objective = Objective(
            stream=task.batches(selected, settings.data, train_settings, order),
            loss=task.loss,
            evaluate=functools.partial(task.evaluate, data=selected),
        )
        name = model_name(variant, weight_seed, batch_seed)
        model_folder = folder / f"{name}-{key[:16]}"
        label = f"{run.name} {name} ({number} of {len(models)})"
        log = train(model, objective, train_settings, model_folder, key, metadata, label)
        rows += [{"variant": variant, "seed": weight_seed} | row for row in log]
        trajectories[name] = model_folder / "trajectory"
    return rows, trajectories


def result_key(settings: Mapping[str, object], data_digest: str) -> str:
    """Hash of all that decides a result: settings, data, our code as imported, torch's version."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(f"{torch.__version__} {data_digest}".encode())
    for path, imported in sorted(inputs.imported().items()):
        digest.update((imported or inputs.digest_of(path)).encode())
    return digest.hexdigest()
