"""Check all of params.yaml and the claims before any work: a slip at the end costs nothing."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field

from toycircuits.claims.card import read_card
from toycircuits.core.config import (
    STRUCTURE,
    InputError,
    Run,
    RunEntry,
    Settings,
    at_key,
    check_keys,
    experiment_tree,
    find_run,
    read_section,
    scales,
)
from toycircuits.core.paths import trajectories, weights_file
from toycircuits.core.slices import (
    load_ablations,
    load_figures,
    load_metrics,
    load_model,
    load_task,
)


class _Experiment(Settings):
    slice: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")


def validate(params: Mapping[str, Any], chosen: list[str] | None = None) -> None:
    """Raise an `InputError` for the first thing that is wrong in `params`.

    Every section of every experiment and run is checked at each of the `chosen` scales (all, if
    None), and every model is built without memory (on torch's meta device).
    """
    check_keys(params, "params.yaml")
    _check_structure(params)
    for scale in chosen or scales(params):
        at_scale = {**params, "scale": scale}
        experiment_tree(at_scale, next(iter(params["experiments"])))
        if unknown := set(params[scale]) - set(params["experiments"]):
            allowed = ", ".join(params["experiments"])
            raise InputError(f"{scale}.{min(unknown)}: no such experiment; allowed: {allowed}")
        for name in params["experiments"]:
            _check_experiment(at_scale, name)
        for name in params["runs"]:
            _check_run(at_scale, name)


def validate_claims(params: Mapping[str, Any], folder: Path) -> None:
    """Raise an `InputError` for the first thing that is wrong in the files of claims in `folder`.

    Each experiment has one, and each of its claims can be compared at a scale that there is.
    """
    names = set(params["experiments"])
    if strays := {path.stem for path in folder.glob("*.yaml")} - names:
        raise InputError(
            f"{folder / min(strays)}.yaml: no such experiment; allowed: {_list(names)}"
        )
    for name in params["experiments"]:
        path = folder / f"{name}.yaml"
        if not path.exists():
            raise InputError(f"{path}: missing; an experiment says there what it claims")
        for claim in read_card(path).claims:
            if strays := set(claim.scales) - set(scales(params)):
                found = f"{path}: {claim.id}.scales: found {min(strays)!r}"
                raise InputError(f"{found}; allowed: {_list(scales(params))}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _check_structure(params: Mapping[str, Any]) -> None:
    for key in STRUCTURE:
        if key not in params:
            raise InputError(f"{key}: missing key")
    for key in ("experiments", "runs"):
        if not isinstance(params[key], dict) or not params[key]:
            raise InputError(f"{key}: found {params[key]!r}; allowed is a mapping with entries")
    _check_names(params)
    for key in ("experiments", "runs"):
        _check_names(params[key])
    _check_released(params)
    for name, entry in params["runs"].items():
        _check_names(RunEntry.parse(entry, f"runs.{name}").variants)
    experiment_tree(params, next(iter(params["experiments"])))
    for name, entry in params["experiments"].items():
        with at_key(f"experiments.{name}"):
            load_task(_Experiment.parse(entry, f"experiments.{name}").slice)


def _check_released(params: Mapping[str, Any]) -> None:
    released = params["released"]
    if not isinstance(released, list):
        raise InputError(f"released: found {released!r}; allowed is a list of names of runs")
    for name in released:
        if name not in params["runs"] or released.count(name) > 1:
            allowed = ", ".join(params["runs"])
            raise InputError(f"released: found {name!r}; allowed, each once: {allowed}")


def _check_names(values: Mapping[str, Any]) -> None:
    for name in values:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]*", name):
            raise InputError(
                f"{name!r}: names are made of letters, digits, _ and ., which is not the first"
            )


def _check_experiment(params: Mapping[str, Any], name: str) -> None:
    code = params["experiments"][name]["slice"]
    read_section(params, name, "data", load_task(code).DataSettings)
    read_section(params, name, "measure", load_metrics(code).MeasureSettings)
    read_section(params, name, "ablate", load_ablations(code).AblateSettings)
    read_section(params, name, "render", load_figures(code).RenderSettings)


def _check_run(params: Mapping[str, Any], name: str) -> None:
    import torch

    run = find_run(params, name)
    experiments = params["experiments"]
    if run.entry.experiment not in experiments:
        allowed = ", ".join(experiments)
        found = run.entry.experiment
        raise InputError(f"runs.{name}.experiment: found {found!r}; allowed: {allowed}")
    if run.entry.slice != (allowed := experiments[run.entry.experiment]["slice"]):
        found = run.entry.slice
        raise InputError(f"runs.{name}.slice: found {found!r}; allowed is {allowed!r}")
    _check_final(params, run)
    task, architecture = load_task(run.entry.slice), load_model(run.entry.slice)
    data: Any = run.section("data", task.DataSettings)
    train = run.section("train", task.TrainSettings)
    measure = load_metrics(run.entry.slice).MeasureSettings
    ablate = load_ablations(run.entry.slice).AblateSettings
    with at_key(run.key):
        train.check(data, train)
        run.section("measure", measure).check(data, train)
        run.section("ablate", ablate).check(data, train)
    for variant in run.variants:
        settings = run.section("model", architecture.ModelSettings, variant)
        with at_key(run.key), torch.device("meta"):
            model = architecture.build(settings, data, torch.Generator(device="cpu"))
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            _check_memory(sum(weight.numel() for weight in trained), data.shapes)


def _check_final(params: Mapping[str, Any], run: Run) -> None:
    """Raise an `InputError` if `final` of a run is not where its final weights are written."""
    released = run.name in params["released"]
    allowed = weights_file(run.name) if released else trajectories(run.name)
    if run.final != allowed:
        why = "as `released` names the run" if released else "unless `released` names the run"
        raise InputError(
            f"runs.{run.name}.final: found {str(run.final)!r}; allowed is {str(allowed)!r}, {why}"
        )


def _check_memory(n_weights: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise an `InputError` if weights, their gradients, Adam's averages and data cannot fit.

    Numbers are counted as 4 bytes, those of the data too, some of which take 8. What a step
    computes on the way comes on top of it; that it fits is not checked.
    """
    weights, data = 4 * 4 * n_weights, 4 * sum(math.prod(shape) for shape in shapes.values())
    if weights + data > (memory := psutil.virtual_memory().total):
        key, gib = "model" if weights > data else "data", 2**30
        raise InputError(
            f"{key}: training needs {(weights + data) / gib:,.1f} GiB of memory at least; "
            f"this machine has {memory / gib:,.1f}"
        )
