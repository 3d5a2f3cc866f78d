"""A command's outcome is its own, whatever becomes of what is told of its time and machine."""

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from dvc_parallel import worker
from dvc_parallel.worker import Job, execute, machine


def job(folder: Path, command: str) -> Job:
    """A job whose log and claim are in `folder`/logs."""
    logs = folder / "logs"
    logs.mkdir()
    told = (str(logs / "log"), str(logs / "stop"), str(logs / "claim"))
    return Job("s", (command,), str(folder), {"SHELL": "/bin/sh"}, *told)


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("harm", ["rm -r logs", "rm logs/claim; mkdir logs/claim"])
def test_a_claim_that_is_lost_changes_no_outcome(tmp_path: Path, harm: str, status: int) -> None:
    assert execute(job(tmp_path, f"{harm}; exit {status}")) == status


def test_a_claim_with_half_a_line_still_tells_of_the_time(tmp_path: Path) -> None:
    ours = job(tmp_path, "printf 1.e- > logs/claim")
    assert execute(ours) == 0
    told = json.loads(Path(ours.claim).read_text())
    assert told["processor_seconds"] is None
    assert told["seconds"] > 0
    assert told["python"]


def test_no_torch_changes_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    machine.cache_clear()
    ours = job(tmp_path, "true")
    assert execute(ours) == 0
    assert json.loads(Path(ours.claim).read_text())["torch"] == "of unknown version"
    machine.cache_clear()


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo A; echo B", ["A", "B"]),
        ("echo NVIDIA-SMI has failed because it could not talk to the driver; exit 9", []),
        ("exec sleep 600", []),
        (None, []),
    ],
)
def test_gpus_are_those_that_are_named_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, gpus: list[str]
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    path = [str(tmp_path), *([os.environ["PATH"]] if script else [])]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setattr(worker, "ANSWER_WITHIN", 0.5)
    assert machine.__wrapped__()["gpus"] == gpus
