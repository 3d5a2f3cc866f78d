"""The outcome of a command does not depend on what is known of its time and machine."""

import dataclasses
import json
import os
import signal
import sys
from importlib import metadata
from pathlib import Path

import pytest
from parallel.test_fork_starter import gone

from dvc_parallel import worker
from dvc_parallel.worker import Job, execute, machine


def make_job(folder: Path, command: str) -> Job:
    """A job whose log, stop file and marker are in `folder`/logs."""
    logs = folder / "logs"
    logs.mkdir()
    log, stop, marker = (str(logs / name) for name in ("log", "stop", "marker"))
    return Job("s", (command,), str(folder), {"SHELL": "/bin/sh"}, log, stop, marker)


def test_a_job_is_run_once(tmp_path: Path) -> None:
    """A cluster may give it to another worker by itself; then it counts as lost."""
    job = make_job(tmp_path, "echo once >> out")
    assert execute(job) == 0
    assert execute(job) == -signal.SIGKILL
    assert (tmp_path / "out").read_text() == "once\n"


def test_an_error_in_watching_kills_what_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, "echo $$ > pid; sleep 600")
    monkeypatch.setattr(worker, "stop_file", lambda stop, number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(job)
    assert not (tmp_path / "pid").exists() or gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("code", [129, 137, 143])
def test_the_exit_code_of_a_shell_whose_command_got_a_signal(tmp_path: Path, code: int) -> None:
    assert execute(make_job(tmp_path, f"exit {code}")) == 128 - code


def test_another_high_exit_code_is_an_exit_code(tmp_path: Path) -> None:
    assert execute(make_job(tmp_path, "exit 150")) == 150


@pytest.mark.skipif(sys.platform != "linux", reason="the supervisor is for Linux")
def test_the_processor_time_of_all_commands_is_added_up(tmp_path: Path) -> None:
    job = make_job(tmp_path, "")
    script = "import time\nwhile time.process_time() < 0.3: pass\n"
    (tmp_path / "busy.py").write_text(script)
    commands = (f"{sys.executable} -S busy.py",) * 2
    job = dataclasses.replace(job, commands=commands)
    assert execute(job) == 0
    usage = json.loads(Path(job.marker).read_text())
    assert 0.6 <= usage["processor_seconds"] < 5
    assert usage["seconds"] > 0


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("harm", ["rm -r logs", "rm logs/marker; mkdir logs/marker"])
def test_a_marker_that_is_lost_changes_no_outcome(tmp_path: Path, harm: str, status: int) -> None:
    assert execute(make_job(tmp_path, f"{harm}; exit {status}")) == status


def test_a_marker_with_half_a_line_still_gives_the_time(tmp_path: Path) -> None:
    job = make_job(tmp_path, "printf 1.e- > logs/marker")
    assert execute(job) == 0
    usage = json.loads(Path(job.marker).read_text())
    assert usage["processor_seconds"] is None
    assert usage["seconds"] > 0
    assert usage["python"]


def test_no_torch_changes_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    machine.cache_clear()
    job = make_job(tmp_path, "true")
    assert execute(job) == 0
    assert json.loads(Path(job.marker).read_text())["torch"] == "of unknown version"
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
