"""How each result was made: the records of the stages, their seeds and their times."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from toycircuits.core.config import (
    InputError,
    Settings,
    experiment_tree,
    find_run,
    quoted,
)
from toycircuits.core.json_text import read_json
from toycircuits.core.messages import short


class _File(Settings):
    """An input or output as dvc.lock has it. DVC writes more about it, which nobody reads."""

    model_config = ConfigDict(extra="ignore")
    path: str
    md5: str = Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")

    @field_validator("path")
    @classmethod
    def _is_inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"found {quoted(path)}; allowed: a path inside the project")
        return path


class _Record(Settings):
    """How one stage was made: its entry of dvc.lock, the code, the machine and the times."""

    cmd: str | list[str]
    deps: tuple[_File, ...] = ()
    params: dict[str, dict[str, Any]] = Field(default={})
    outs: tuple[_File, ...] = ()
    commit: str
    edited: bool | None
    seconds: float | None = Field(ge=0)
    processor_seconds: float | None = Field(ge=0)
    attempts: int = Field(ge=1)
    system: str
    processor: str
    cores: int | None = Field(ge=1)
    gpus: list[str]
    python: str
    torch: str


def read_records(path: Path) -> dict[str, Any]:
    """Stage -> the record of its last run: its time, machine, commit, inputs and settings.

    Raises:
        InputError: the file is not what `toycircuits repro` writes.
    """
    hint = "; `git checkout` restores the last records, and a file with `{}` starts new ones"
    records = read_json(path, hint)
    if not isinstance(records, dict):
        raise InputError(f"{path}: found {short(records)}; allowed: an object of stages{hint}")
    for stage, record in records.items():
        try:
            _Record.parse(record, f"{path}: {stage}")
        except InputError as error:
            raise InputError(f"{error}{hint}") from None
    return records


def current_records(
    records: Mapping[str, Any], params: Mapping[str, Any], root: Path
) -> dict[str, Any]:
    """The records whose files and settings are those that the project has now.

    Folders are not compared. Files that do not exist are not compared either, because git does not
    carry all results.
    """
    return {
        stage: record
        for stage, record in records.items()
        if _is_known(stage, params)
        and all(
            value == _setting(params, key)
            for key, value in record.get("params", {}).get("params.yaml", {}).items()
        )
        and all(
            _is_as_recorded(root / entry["path"], entry["md5"])
            for entry in [*record.get("deps", []), *record.get("outs", [])]
        )
    }


def _is_known(stage: str, params: Mapping[str, Any]) -> bool:
    """Whether params.yaml has the run or experiment of `stage`. Records of others may be left."""
    name = stage.partition("@")[2]
    return not name or name in params["runs"] or name in params["experiments"]


def _setting(params: Mapping[str, Any], key: str) -> Any:
    """The setting at a key with dots. None if there is no such key."""
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


@cache
def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _is_as_recorded(path: Path, md5: str) -> bool:
    return md5.endswith(".dir") or not path.is_file() or _md5(path) == md5


def stages_of(experiment: str, params: Mapping[str, Any]) -> list[str]:
    """The stages that lead to the figures and verdicts of `experiment`, in their order."""
    runs = [name for name, run in params["runs"].items() if run["experiment"] == experiment]
    stages_of_runs = {
        **{"train": runs, "release": [run for run in runs if run in params["released"]]},
        **{"measure": runs, "ablate": runs},
    }
    middle = [f"{verb}@{run}" for verb, names in stages_of_runs.items() for run in names]
    return [f"generate@{experiment}", *middle, f"render@{experiment}", f"judge@{experiment}"]


def seeds_of(stage: str, params: Mapping[str, Any]) -> str:
    """The seeds of a stage in words: `generate` has one for data, `train` for weights and batches.

    Other stages have none, which gives the empty text.
    """
    verb, _, name = stage.partition("@")
    if verb == "generate":
        _, tree = experiment_tree(params, name)
        return f"data {tree['data'].get('seed', '')}"
    if verb != "train":
        return ""
    train, _ = find_run(params, name).values("train")
    weights = "weights " + ", ".join(map(str, train["weight_seeds"]))
    batches = train.get("batch_seeds")
    return weights + ("; batches " + ", ".join(map(str, batches)) if batches else "")


def duration(seconds: float | None) -> str:
    """A time in seconds as text for people.

    >>> duration(4.21), duration(75), duration(7384), duration(None)
    ('4.2 s', '1 min 15 s', '2 h 3 min', 'not recorded')
    """
    if seconds is None:
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def totals(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Processor time of all stages together, and the machines that they ran on.

    Args:
        stages: stage -> its record, or None if there is no record.

    Returns:
        processor: the time as text; machines: as text; timed, untimed: how many stages have a
        recorded time, and how many have none.
    """
    timed = [
        record for record in stages.values() if record and record["processor_seconds"] is not None
    ]
    machines = {
        f"{record['processor']}, {record['cores']} cores, {record['system']}, "
        f"Python {record['python']}, torch {record['torch']}"
        + "".join(f", {gpu}" for gpu in record["gpus"])
        for record in timed
    }
    return {
        "processor": duration(sum(record["processor_seconds"] for record in timed)),
        "machines": "; ".join(sorted(machines)),
        "timed": len(timed),
        "untimed": len(stages) - len(timed),
    }
