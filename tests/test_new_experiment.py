"""`toycircuits new-experiment` writes an experiment that works; dvc.yaml stays as it is."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT, environment_of
from ruamel.yaml import YAML

from toycircuits.commands.new_experiment import create
from toycircuits.core.config import InputError

NAME = "say_again"
N_FILES = 11  # that are written: eight modules, claims, a test and params.yaml


def project(folder: Path) -> Path:
    """A copy of the project, without results."""
    for name in ("src", "stages", "claims", "tests/experiments"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "params.yaml"):
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
    new_files = made.stdout.splitlines()[:-1]
    assert f"src/toycircuits/experiments/{NAME}/metrics/measure.py" in new_files
    assert all((tmp_path / path).exists() for path in new_files)
    checked = toycircuits(tmp_path, "check")
    assert checked.returncode == 0, checked.stderr

    # Without the other experiments, which take long.
    yaml = YAML()
    params = yaml.load((tmp_path / "params.yaml").read_text())
    params["scale"] = "quick"
    for key in ("experiments", "runs", "quick", "paper"):
        params[key] = {NAME: params[key][NAME]}
    assert params["released"][-1] == NAME
    params["released"] = [NAME]
    for claims in (tmp_path / "claims").glob("*.yaml"):
        if claims.stem != NAME:
            claims.unlink()
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    dvc = [sys.executable, "-m", "dvc", "init", "--quiet"]
    subprocess.run(dvc, cwd=tmp_path, check=True)
    ran = toycircuits(tmp_path, "repro")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "not reproduced" not in (tmp_path / f"reports/{NAME}/claims.csv").read_text()
    figure = json.loads((tmp_path / f"artifacts/figures/{NAME}/accuracy.json").read_text())
    assert [line["name"] for line in figure["data"]] == ["0", "1", "2"], "a line for each seed"
    summary = (tmp_path / f"reports/{NAME}/summary/final_accuracy.csv").read_text()
    assert summary == f"run,variant,mean,min,max\n{NAME},,1,1,1\n"
    assert (tmp_path / f"reports/weights/{NAME}.safetensors").exists()
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    test += [f"tests/experiments/test_{NAME}.py", "-c", "/dev/null"]
    environment = environment_of(PYTHONPATH=str(tmp_path / "src"))
    subprocess.run(test, cwd=tmp_path, env=environment, check=True)
    subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
    fresh = toycircuits(tmp_path, "fresh")
    assert (fresh.returncode, fresh.stderr) == (0, "")


@pytest.mark.slow
def test_what_it_writes_passes_all_checks_of_code(tmp_path: Path) -> None:
    project(tmp_path)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/project.py", "benchmarks"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    made = [str(path) for path in create(tmp_path, NAME) if path.suffix == ".py"]
    for command in (["ruff", "format", "--check"], ["ruff", "check"], ["mypy"]):
        tool = [sys.executable, "-m", *command, *made]
        done = subprocess.run(tool, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Say-Again", "found the name 'Say-Again'; allowed: lower-case letters, digits and _"),
        ("class", "found the name 'class'; allowed"),
        ("x" * 300, "at most 100 of them"),
        ("_x", "starting with a letter"),
        ("../x", "found the name '../x'; allowed"),
        ("quick", "found the name 'quick', which has another use here"),
        ("released", "found the name 'released', which has another use here"),
        ("train", "found the name 'train', which has another use here"),
        ("weights", "found the name 'weights', which has another use here"),
        ("torch", "found the name 'torch', which a Python package has"),
        ("list_copy_10", "claims/list_copy_10.yaml exists already"),
        ("linear_regression_h1", "runs.linear_regression_h1 of params.yaml exists already"),
        ("modular_arithmetic", "src/toycircuits/experiments/modular_arithmetic exists already"),
    ],
)
def test_a_bad_or_taken_name_writes_nothing(tmp_path: Path, name: str, message: str) -> None:
    project(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError) as error:
        create(tmp_path, name)
    assert message in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


LAYOUT = "found a layout that takes no entry; write each of its entries on lines of its own"
SMALL = """\
scale: quick  # a remark
portable: {quick: true}
experiments:
  e: {slice: list_copy, runs: [r]}

runs:
  r: {experiment: e, slice: list_copy, final: reports/weights/r.safetensors}
released:
  - r
# of the scale
quick:
  e:

    data: {seed: 0}
"""
RUN = next(line for line in SMALL.splitlines(keepends=True) if line.startswith("  r:"))
SCALES = "portable: {quick: true}\n"
RUNS = SMALL[SMALL.index("\nruns:") + 1 : SMALL.index("released")]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path of `folder`, and what is in the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (SCALES, "portable: {quick: true, other: true}\nother: {e: {}}\n", f"other: {LAYOUT}"),
        ("  r: {", "    r: {", f"runs: {LAYOUT}"),
        ("  e:\n\n    data", "  e:\n# between them\n    data", f"quick: {LAYOUT}"),
        (RUNS, "", "runs: missing key"),
        (
            RUN,
            "",
            "runs: found None; allowed is a mapping",
        ),
        ("released:\n  - r\n", "", "released: missing key"),
        ("released:\n  - r\n", "released: r\n", "released: found 'r'; allowed is a list"),
        ("released:\n  - r\n", "released: [r]\n", f"released: {LAYOUT}"),
        (SMALL[SMALL.index("  e:\n\n") :], "", "quick: found None; allowed is a mapping"),
        (SCALES, f"{SCALES}fast: 3\n", "fast: found 3; allowed is a mapping"),
        ("experiment: e", "experiment: f", "runs.r.experiment: found 'f'; there are: e"),
    ],
)
def test_params_without_a_place_for_it_are_left_alone(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert SMALL.count(before) == 1
    (tmp_path / "params.yaml").write_text(SMALL.replace(before, after))
    there = contents(tmp_path)
    with pytest.raises(InputError) as error:
        create(tmp_path, NAME)
    assert str(error.value).removeprefix("params.yaml: ").startswith(message)
    assert contents(tmp_path) == there


@pytest.mark.parametrize(
    "text",
    [SMALL, SMALL.rstrip("\n"), SMALL.replace("\n", "\r\n")],
    ids=["as here", "no end of the last line", "CRLF"],
)
def test_params_keep_every_line(tmp_path: Path, text: str) -> None:
    target = tmp_path / "elsewhere.yaml"
    target.write_bytes(text.encode())
    target.chmod(0o640)
    (tmp_path / "params.yaml").symlink_to(target)
    create(tmp_path, NAME)
    after = target.read_bytes().decode()
    lines = iter(after.splitlines(keepends=True))
    end = "\r\n" if "\r" in text else "\n"
    assert all(line in lines for line in f"{text.rstrip()}{end}".splitlines(keepends=True))
    assert after.count("\r") == (after.count("\n") if "\r" in text else 0)
    params = YAML(typ="safe").load(after)
    assert all(NAME in params[key] for key in ("experiments", "runs", "quick", "released"))
    assert params["runs"][NAME]["final"] == f"reports/weights/{NAME}.safetensors"
    assert (tmp_path / "params.yaml").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("written", range(N_FILES + 1))
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Whichever file the disk refuses, or if it refuses to put the new params.yaml in place."""
    (tmp_path / "params.yaml").write_text(SMALL)
    (tmp_path / "claims").mkdir()
    there, whole, left = contents(tmp_path), Path.write_bytes, [written]

    def write(path: Path, content: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            whole(path, content[:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, content)

    def replace(path: Path, target: Path) -> None:
        assert contents(tmp_path).keys() > there.keys()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        create(tmp_path, NAME)
    assert contents(tmp_path) == there
