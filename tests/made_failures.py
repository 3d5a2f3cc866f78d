"""Fixtures of tests that damage things: a finished project, and its stages in this process."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project import Project

from toycircuits.core.portable import PINS

RUN = "list_copy_10"
TRAIN = ("python", "stages/train.py", RUN)
DATA = f"artifacts/data/{RUN}.safetensors"
TRAJECTORIES = f"artifacts/trajectories/{RUN}"
WEIGHTS = f"reports/weights/{RUN}.safetensors"
Stage = Callable[..., tuple[int, str]]


def one_line(err: str) -> str:
    """The one line that a person reads, once progress bars are taken away."""
    lines = [line for line in err.split("\n") if line and "step/s" not in line]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of a finished project to damage; its cache is a copy, too."""
    return finished.copy(tmp_path / "project")


@pytest.fixture
def stage(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restored_torch: None,
) -> Stage:
    """Runs a stage of `project` in this process: exit code, and what it prints on stderr."""

    def run(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(project.folder)
        for pin, value in PINS.items():  # or the stage would start this process again
            monkeypatch.setenv(pin, value)
        main = runpy.run_path(str(project.folder / f"stages/{name}.py"))["main"]
        capsys.readouterr()
        code: Any = 0
        try:
            main(*arguments)
        except SystemExit as exit:
            code = exit.code
        return code, capsys.readouterr().err

    return run


def change_training(project: Project, **changes: Any) -> None:
    params = project.read_params()
    params["quick"][RUN]["train"] |= changes
    project.write_params(params)
