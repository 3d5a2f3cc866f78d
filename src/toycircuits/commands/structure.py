"""The frame of params.yaml: scales, experiments, runs and what is released, without settings.

Every command that reads params.yaml calls this first. DVC would name dvc.yaml for most of these
mistakes.
"""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toycircuits.core.config import (
    STRUCTURE,
    InputError,
    Run,
    Settings,
    at_key,
    check_name,
    experiment_tree,
    find_run,
    read_params,
    runs_of,
    scales,
)
from toycircuits.core.messages import quoted
from toycircuits.core.paths import ARTIFACTS, REPORTS, trajectories, weights_file
from toycircuits.core.plain_yaml import check_plain
from toycircuits.core.portable import is_portable
from toycircuits.core.report_paths import ATTEST, CLAIMS, LOGS
from toycircuits.core.slices import PACKAGE

STAGES = (
    *("generate", "train", "release", "measure", "ablate"),
    *("render", "judge", "section", "report"),
)
# Commands take these names for something else, or files with another purpose have them.
RESERVED = (*STAGES, "weights", "workspace", "pictures", "spent")
FOLDERS = (
    *map(str, (ARTIFACTS, ATTEST, CLAIMS, LOGS, REPORTS)),
    *("src", "stages", "tests", "docs"),
)


class _Experiment(Settings):
    slice: str
    runs: list[str]


def read_project(path: Path | str = "params.yaml") -> dict[str, Any]:
    """All of params.yaml, of which the frame is valid.

    Raises:
        InputError: as `read_params` and `check_structure`.
    """
    params = read_params(path)
    check_structure(params)
    return params


def check_structure(params: Mapping[str, Any]) -> None:
    """Check that `params` names scales, experiments and runs that fit together.

    Raises:
        InputError: one line with the key and what is allowed there.
    """
    try:
        check_plain(params)
    except ValueError as error:
        raise InputError(f"params.yaml: {error}") from None
    for key in STRUCTURE:
        if key not in params:
            raise InputError(f"params.yaml: {key}: missing key")
    for key in ("experiments", "runs"):
        if not isinstance(params[key], dict) or not params[key]:
            found = quoted(params[key])
            raise InputError(f"{key}: found {found}; allowed is a mapping with entries")
        _check_names(params[key], key, RESERVED)
    _check_names(scales(params), "params.yaml", FOLDERS)
    _check_released(params)
    for name, entry in params["experiments"].items():
        _check_slice(_Experiment.parse(entry, f"experiments.{name}").slice, name)
    experiment_tree(params, next(iter(params["experiments"])))
    for scale in scales(params):
        _check_scale({**params, "scale": scale}, scale)
    _check_portable(params)
    for name in params["runs"]:
        _check_run(params, find_run(params, name))
    for name in params["experiments"]:
        _check_lists(params, name)


def _check_scale(params: Mapping[str, Any], scale: str) -> None:
    """Raise an `InputError` unless the `scale` has a tree for each experiment, and no others."""
    for name in params["experiments"]:
        experiment_tree(params, name)
    if unknown := set(params[scale]) - set(params["experiments"]):
        allowed = ", ".join(params["experiments"])
        raise InputError(f"{scale}.{min(unknown)}: no such experiment; allowed: {allowed}")


def _check_portable(params: Mapping[str, Any]) -> None:
    """Raise an `InputError` unless `portable` says yes or no of each scale, and of nothing else."""
    allowed = scales(params)
    for scale in allowed:
        is_portable({**params, "scale": scale})
    for name in params["portable"]:
        if name not in allowed:
            raise InputError(f"portable.{name}: no such scale; allowed: {', '.join(allowed)}")


def _check_lists(params: Mapping[str, Any], experiment: str) -> None:
    """Raise an `InputError` unless the entry of `experiment` lists just the runs that name it."""
    key, listed = f"experiments.{experiment}.runs", runs_of(params, experiment)
    named = [name for name, run in params["runs"].items() if run["experiment"] == experiment]
    for name in {**dict.fromkeys(listed), **dict.fromkeys(named)}:
        if name not in named:
            raise InputError(f"{key}: found {name!r}; allowed: {', '.join(named) or 'none'}")
        if (count := listed.count(name)) != 1:
            text = f"found {name!r} {count} times; list each run of the experiment once"
            raise InputError(f"{key}: {text}")


def _check_slice(code: str, experiment: str) -> None:
    key = f"experiments.{experiment}.slice"
    if find_spec(f"{PACKAGE}.{check_name(code, key)}") is None:
        place = PACKAGE.replace(".", "/")
        raise InputError(f"{key}: found {code!r}; there is no such folder under {place}")


def _check_names(names: Iterable[str], key: str, reserved: Iterable[str] = ()) -> None:
    """Raise an `InputError` for a name that cannot be used, or that is another's in capitals."""
    lower: dict[str, str] = {}
    for name in names:
        check_name(name, key)
        if name.lower() in reserved:
            raise InputError(f"{key}: found the name {name!r}, which has another use here")
        if (other := lower.setdefault(name.lower(), name)) != name:
            hint = "some disks take both for the same file"
            raise InputError(f"{key}: found the names {other!r} and {name!r}; {hint}")


def _check_released(params: Mapping[str, Any]) -> None:
    """Raise an `InputError` unless `released` is a list of different runs."""
    released, allowed = params["released"], ", ".join(params["runs"])
    if not isinstance(released, list):
        raise InputError(f"released: found {quoted(released)}; allowed is a list of runs")
    for name in released:
        if not isinstance(name, str) or name not in params["runs"]:
            raise InputError(f"released: found {quoted(name)}; allowed: {allowed}")
        if (count := released.count(name)) > 1:
            raise InputError(f"released: found {name!r} {count} times; allowed: once")


def _check_run(params: Mapping[str, Any], run: Run) -> None:
    """Raise an `InputError` if the entry of `run` does not fit the rest of `params`."""
    code = params["experiments"][run.entry.experiment]["slice"]
    with at_key(f"runs.{run.name}"):
        if run.entry.slice != code:
            found = quoted(run.entry.slice)
            raise InputError(f"slice: found {found}; allowed is {code!r}")
        _check_names(run.entry.variants, "variants")
        is_released = run.name in params["released"]
        allowed = (weights_file if is_released else trajectories)(run.name).as_posix()
        if (final := run.entry.final) != allowed:
            why = f"because `released` {'names' if is_released else 'does not name'} the run"
            raise InputError(f"final: found {quoted(final)}; allowed is {allowed!r}, {why}")
