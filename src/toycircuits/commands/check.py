"""`toycircuits check`: validate params.yaml and the claims, so that no mistake costs a training.

`toycircuits repro` does the same for its scale before it runs anything.
"""

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
from toycircuits.core.fast_import import import_transformer_lens
from toycircuits.core.paths import CLAIMS, claims_file, trajectories, weights_file
from toycircuits.core.slices import (
    load_ablations,
    load_figures,
    load_metrics,
    load_model,
    load_task,
)


class _Experiment(Settings):
    slice: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")


def check_all(params: Mapping[str, Any]) -> None:
    """Validate all settings of `params`, at every scale, and the files of claims.

    Raises:
        InputError: one line about the first thing that is wrong.
    """
    import_transformer_lens()
    validate(params)
    validate_claims(params, CLAIMS)


def validate(params: Mapping[str, Any], chosen: list[str] | None = None) -> None:
    """Validate all settings of `params` at the `chosen` scales, by default at all of them.

    Every section of every experiment and run is parsed. Every model is built on torch's meta
    device, which takes no memory.

    Raises:
        InputError: one line about the first setting that is wrong.
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
    """Validate the files of claims in `folder`: one for each experiment, and no others.

    Raises:
        InputError: one line about the first thing that is wrong, for example a claim that names a
            scale that params.yaml does not have.
    """
    names = set(params["experiments"])
    if strays := {path.stem for path in folder.glob("*.yaml")} - names:
        raise InputError(
            f"{folder / min(strays)}.yaml: no such experiment; allowed: {_list(names)}"
        )
    for name in params["experiments"]:
        path = folder / claims_file(name).name
        if not path.exists():
            raise InputError(f"{path}: missing; every experiment has a file of claims")
        for claim in read_card(path).claims:
            if strays := set(claim.scales) - set(scales(params)):
                place = f"{path}: {claim.id}.scales"
                allowed = _list(scales(params))
                raise InputError(f"{place}: found {min(strays)!r}; allowed: {allowed}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _check_structure(params: Mapping[str, Any]) -> None:
    for key in STRUCTURE:
        if key not in params:
            raise InputError(f"{key}: missing key")
    for key in ("experiments", "runs"):
        if not isinstance(params[key], dict) or not params[key]:
            raise InputError(f"{key}: found {params[key]!r}; allowed is a mapping with entries")
        _check_names(params[key], key)
    _check_names(params, "params.yaml")
    _check_released(params)
    for name, entry in params["runs"].items():
        variants = RunEntry.parse(entry, f"runs.{name}").variants
        _check_names(variants, f"runs.{name}.variants")
    experiment_tree(params, next(iter(params["experiments"])))
    for name, entry in params["experiments"].items():
        with at_key(f"experiments.{name}"):
            load_task(_Experiment.parse(entry, f"experiments.{name}").slice)


def _check_released(params: Mapping[str, Any]) -> None:
    """Raise an `InputError` unless `released` is a list of different runs."""
    released, allowed = params["released"], ", ".join(params["runs"])
    if not isinstance(released, list):
        raise InputError(f"released: found {released!r}; allowed is a list of runs")
    for name in released:
        if not isinstance(name, str) or name not in params["runs"]:
            raise InputError(f"released: found {name!r}; allowed: {allowed}")
        if released.count(name) > 1:
            raise InputError(
                f"released: found {name!r} {released.count(name)} times; allowed: once"
            )


def _check_names(values: Mapping[str, Any], key: str) -> None:
    for name in values:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]*", name):
            raise InputError(
                f"{key}: found the name {name!r}; names may contain letters, digits, `_` and `.`, "
                "and may not start with `.`"
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
        raise InputError(
            f"runs.{name}.experiment: found {run.entry.experiment!r}; allowed: {allowed}"
        )
    if run.entry.slice != (allowed := experiments[run.entry.experiment]["slice"]):
        raise InputError(f"runs.{name}.slice: found {run.entry.slice!r}; allowed is {allowed!r}")
    _check_final(params, run)
    task, architecture = load_task(run.entry.slice), load_model(run.entry.slice)
    data = run.section("data", task.DataSettings)
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
    is_released = run.name in params["released"]
    allowed = (weights_file if is_released else trajectories)(run.name).as_posix()
    if (final := run.entry.final) != allowed:
        why = f"because `released` {'names' if is_released else 'does not name'} the run"
        raise InputError(f"runs.{run.name}.final: found {final!r}; allowed is {allowed!r}, {why}")


def _check_memory(n_weights: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise an `InputError` if weights, gradients, Adam's two averages and data do not fit.

    This is a lower bound: every number counts as 4 bytes, although some data take 8, and the
    intermediate values of a training step are not counted.
    """
    weights, data = 4 * 4 * n_weights, 4 * sum(math.prod(shape) for shape in shapes.values())
    if weights + data > (memory := psutil.virtual_memory().total):
        key, gib = "model" if weights > data else "data", 2**30
        raise InputError(
            f"{key}: training needs {(weights + data) / gib:,.1f} GiB of memory at least; "
            f"this machine has {memory / gib:,.1f}"
        )
