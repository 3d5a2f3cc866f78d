"""`toycircuits check`: validate params.yaml and the claims, so that no mistake costs a training.

`toycircuits repro` does the same for its scale before it runs anything.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from toycircuits.claims.card import read_card
from toycircuits.commands.structure import check_structure
from toycircuits.core.analyses import load_ablations, load_figures, load_metrics
from toycircuits.core.config import InputError, at_key, find_run, read_section, scales
from toycircuits.core.fast_import import import_transformer_lens
from toycircuits.core.portable import refuse_compilation
from toycircuits.core.report_paths import CLAIMS, claims_file
from toycircuits.core.slices import load_model, load_task


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
    check_structure(params)
    for name, entry in params["experiments"].items():
        with at_key(f"experiments.{name}"):
            load_task(entry["slice"])
    for scale in chosen or scales(params):
        at_scale = {**params, "scale": scale}
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


def _check_experiment(params: Mapping[str, Any], name: str) -> None:
    code = params["experiments"][name]["slice"]
    read_section(params, name, "data", load_task(code).DataSettings)
    read_section(params, name, "measure", load_metrics(code).MeasureSettings)
    read_section(params, name, "ablate", load_ablations(code).AblateSettings)
    read_section(params, name, "render", load_figures(code).RenderSettings)


def _check_run(params: Mapping[str, Any], name: str) -> None:
    import torch

    from toycircuits.core.outline import outline

    run = find_run(params, name)
    task, architecture = load_task(run.entry.slice), load_model(run.entry.slice)
    data = run.section("data", task.DataSettings)
    train = run.section("train", task.TrainSettings)
    measure = load_metrics(run.entry.slice).MeasureSettings
    ablate = load_ablations(run.entry.slice).AblateSettings
    with at_key(run.key):
        train.check(data, train)
        run.section("measure", measure).check(data, train)
        run.section("ablate", ablate).check(data, train)
    refuse_compilation(train.compile, params, run.key)
    for variant in run.variants:
        settings = run.section("model", architecture.ModelSettings, variant)
        with at_key(run.key), outline():
            model = architecture.build(settings, data, torch.Generator(device="cpu"))
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            _check_memory(sum(weight.numel() for weight in trained), data.shapes)


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
