"""`toycircuits new-experiment` writes an experiment that works; dvc.yaml stays as it is."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT, environment_of
from ruamel.yaml import YAML

from toycircuits.config import InputError
from toycircuits.new_experiment import create

NAME = "say_again"


def project(folder: Path) -> Path:
    """What a project is made of, without results."""
    for name in ("src", "stages", "claims", "tests/experiments"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def toycircuits(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", "from toycircuits.cli import run; run()", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment_of(PYTHONPATH=str(folder / "src")),
    )


@pytest.mark.slow
def test_a_new_experiment_runs_end_to_end(tmp_path: Path) -> None:
    project(tmp_path)
    before = (tmp_path / "params.yaml").read_text()
    made = toycircuits(tmp_path, "new-experiment", NAME)
    assert made.returncode == 0, made.stderr
    lines = (tmp_path / "params.yaml").read_text().splitlines()
    assert [line for line in before.splitlines() if line not in lines] == []  # comments and all
    for path in made.stdout.splitlines()[:-1]:
        assert (tmp_path / path).exists()
    checked = toycircuits(tmp_path, "check")
    assert checked.returncode == 0, checked.stderr

    # The others are left out here: they take long.
    yaml = YAML()
    params = yaml.load((tmp_path / "params.yaml").read_text())
    params["scale"] = "quick"
    for key in ("experiments", "runs", "quick", "paper"):
        params[key] = {NAME: params[key][NAME]}
    for claims in (tmp_path / "claims").glob("*.yaml"):
        if claims.stem != NAME:
            claims.unlink()
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    dvc = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"]
    subprocess.run(dvc, cwd=tmp_path, check=True)
    ran = toycircuits(tmp_path, "repro")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "not reproduced" not in (tmp_path / f"reports/{NAME}/claims.csv").read_text()
    assert (tmp_path / f"artifacts/figures/{NAME}/accuracy.json").exists()
    assert (tmp_path / f"reports/weights/{NAME}.safetensors").exists()
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    test += [f"tests/experiments/test_{NAME}.py", "-c", "/dev/null"]
    environment = environment_of(PYTHONPATH=str(tmp_path / "src"))
    subprocess.run(test, cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Say-Again", "found the name 'Say-Again'; allowed: lower-case letters, digits and _"),
        ("class", "found the name 'class'; allowed"),
        ("list_copy_10", "there is claims/list_copy_10.yaml already"),
        ("linear_regression_h1", "there is runs.linear_regression_h1 of params.yaml already"),
        ("modular_arithmetic", "there is src/toycircuits/experiments/modular_arithmetic already"),
    ],
)
def test_names_that_cannot_be_write_nothing(tmp_path: Path, name: str, message: str) -> None:
    project(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError) as error:
        create(tmp_path, name)
    assert message in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_params_laid_out_otherwise_are_left_alone(tmp_path: Path) -> None:
    project(tmp_path)
    text = (tmp_path / "params.yaml").read_text() + "other: {list_copy_10: {}}\n"
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"params.yaml: \w+: laid out so that no entry can be added"
    ):
        create(tmp_path, NAME)
    assert (tmp_path / "params.yaml").read_text() == text
