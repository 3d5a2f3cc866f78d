"""What does not belong together is named; a project in which all does is fresh."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from project import environment_of

from toycircuits.freshness import orphans, stale

STAGES = """\
stages:
  train:
    foreach: ${runs}
    do:
      cmd: python copy_text.py ${key} ${item.experiment}
      deps:
        - copy_text.py
      params:
        - runs.${key}
      outs:
        - reports/${item.experiment}/tables/${key}:
            cache: false
"""
PARAMS = "runs: {a: {experiment: e}, b: {experiment: e}}\n"
CODE = """\
import pathlib, sys
folder = pathlib.Path("reports", sys.argv[2], "tables", sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "t.csv").write_text("x")
"""


def run(folder: Path, *command: str) -> None:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ("git", *identity, *command[1:]) if command[0] == "git" else command
    subprocess.run(command, cwd=folder, env=environment_of(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two runs, reproduced and committed."""
    folder = tmp_path_factory.mktemp("fresh")
    for name, text in {
        "dvc.yaml": STAGES,
        "params.yaml": PARAMS,
        "copy_text.py": CODE,
    }.items():
        (folder / name).write_text(text)
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")
    run(folder, "dvc", "repro", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "--message", "reproduced")
    return folder


def edit_code(folder: Path) -> None:
    (folder / "copy_text.py").write_text(CODE.replace('"x"', '"y"'))


def edit_result(folder: Path) -> None:
    (folder / "reports/e/tables/a/t.csv").write_text("typed in")


def drop_run(folder: Path) -> None:
    (folder / "params.yaml").write_text("runs: {a: {experiment: e}}\n")


def add_run(folder: Path) -> None:
    (folder / "params.yaml").write_text(PARAMS.replace("{a:", "{c: {experiment: e}, a:"))


def forget_result(folder: Path) -> None:
    run(folder, "git", "rm", "--cached", "-r", "--quiet", "reports/e/tables/b")


def undrawn(folder: Path) -> None:
    note = folder / "reports/e/figures/NOT_DRAWN.txt"
    note.parent.mkdir()
    note.write_text("no Chrome")
    run(folder, "git", "add", str(note))


def lose_lock(folder: Path) -> None:
    (folder / "dvc.lock").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (lambda folder: None, []),
        (edit_code, ["Running stage 'train@a':", "Running stage 'train@b':"]),
        (edit_result, ["Running stage 'train@a':"]),
        (
            drop_run,
            ["dvc.lock: entry without a stage: train@b", "tables of no run: reports/e/tables/b"],
        ),
        (add_run, ["Running stage 'train@c':", "never run: train@c"]),
        (forget_result, ["not in git: reports/e/tables/b"]),
        (undrawn, ["pictures were not drawn: reports/e/figures/NOT_DRAWN.txt"]),
        (lose_lock, ["dvc.lock: missing; nothing has been run"]),
    ],
)
def test_what_does_not_belong_together_is_named(
    reproduced: Path, tmp_path: Path, change: Callable[[Path], None], problems: list[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(reproduced, folder)
    change(folder)
    assert stale(folder) == problems


def test_tables_of_another_experiment_belong_to_no_run(tmp_path: Path) -> None:
    (tmp_path / "reports/f/tables/a").mkdir(parents=True)
    (tmp_path / "reports/e/tables/a").mkdir(parents=True)
    assert orphans(tmp_path, {"runs": {"a": {"experiment": "e"}}}) == [Path("reports/f/tables/a")]
