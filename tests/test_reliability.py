"""Kills, faults and damage in real processes: no run is lost, and what is wrong is one line."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from project import Project
from ruamel.yaml import YAML
from safetensors.torch import save_file

from toycircuits.core.checkpoints import METADATA_KEY, read_tensors, write_tensors

pytestmark = pytest.mark.slow
RUN = "list_copy_10"
TRAIN = ("python", "stages/train.py", RUN)
DATA = f"artifacts/data/{RUN}.safetensors"
TRAJECTORIES = f"artifacts/trajectories/{RUN}/{RUN}"


def one_line(err: str) -> str:
    """The one line that a person reads, once progress bars are taken away."""
    lines = [line for line in err.split("\n") if line and "step/s" not in line]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of one experiment, reproduced."""
    project = Project(tmp_path_factory.mktemp("reliable") / "project", [RUN])
    assert f"train@{RUN}" in project.repro()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of it to spoil; its cache too is a copy."""
    copied = tmp_path / "project"
    shutil.copytree(finished.folder, copied, symlinks=True)
    spoilt = object.__new__(Project)
    spoilt.folder, spoilt.audit = copied, finished.audit
    return spoilt


# --- kill and resume ---


def slow_down(project: Project) -> None:
    """Let a state and a checkpoint be written at every step: most kills then meet a writer."""
    code = project.folder / "src/toycircuits/core/training.py"
    text = code.read_text()
    assert "RESUME_EVERY = 20.0" in text
    code.write_text(text.replace("RESUME_EVERY = 20.0", "RESUME_EVERY = -1.0"))
    params = project.read_params()
    params["quick"][RUN]["train"] |= {"length": 400, "checkpoint_every": 1}
    project.write_params(params)


def kill(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> None:
    os.killpg(process.pid, number)


def newest(folder: Path) -> float:
    """When a state was last written below `folder`."""
    return max(path.stat().st_mtime for path in folder.glob("*/resume.safetensors"))


def test_killed_again_and_again_a_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = (Project(tmp_path / name, [RUN]) for name in ("whole", "killed"))
    for each in (whole, killed):
        slow_down(each)
        each.repro(f"generate@{RUN}")
    assert whole.repro(f"train@{RUN}") == {f"train@{RUN}"}

    rng = random.Random(0)
    resumed = 0
    first = killed.start("python", "-m", "dvc", "repro", f"train@{RUN}")
    resume = killed.folder / f".resume/{RUN}"
    while not list(resume.glob("*/resume.safetensors")):
        assert first.poll() is None
        time.sleep(0.05)
    kill(first)
    first.communicate()
    for _ in range(6):
        before = newest(resume)
        stage = killed.start(*TRAIN)
        while newest(resume) == before:  # until it goes on
            assert stage.poll() is None
            time.sleep(0.01)
        time.sleep(rng.random() / 2)
        kill(stage)
        _, err = stage.communicate()
        resumed += "resuming at step" in err
    assert resumed == 6
    assert killed.repro(f"train@{RUN}") == {f"train@{RUN}"}
    assert killed.results() == whole.results()
    assert not resume.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_state_to_go_on_from(project: Project, number: int) -> None:
    params = project.read_params()
    params["quick"][RUN]["train"]["length"] = 600
    project.write_params(params)
    stage = project.start(*TRAIN)
    resume = project.folder / f".resume/{RUN}"
    while not list(resume.glob("*/trajectory/*")):  # the loop has begun
        assert stage.poll() is None
        time.sleep(0.02)
    stage.send_signal(number)
    _, err = stage.communicate(timeout=60)
    assert stage.returncode == 128 + number
    stopped = re.search(
        rf"^{RUN} seed\S+ .*: stopped at step (\d+); its state is saved", err, re.MULTILINE
    )
    assert stopped, err
    code, _, err = project.run(*TRAIN)
    assert code == 0
    assert f"resuming at step {stopped[1]}" in err
    interrupted = project.results(TRAJECTORIES)
    assert project.run(*TRAIN)[0] == 0
    assert project.results(TRAJECTORIES) == interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_reproduction_ends_in_order(project: Project, number: int) -> None:
    """SIGINT comes to all processes, as from a terminal; SIGTERM to the command alone."""
    params = project.read_params()
    params["quick"][RUN]["train"] |= {"length": 100_000, "checkpoint_every": 100_000}
    project.write_params(params)
    command = project.start("toycircuits", "repro", f"train@{RUN}")
    resume = project.folder / f".resume/{RUN}"
    while not list(resume.glob("*/trajectory/*")):
        assert command.poll() is None
        time.sleep(0.02)
    if number == signal.SIGINT:
        kill(command, number)
    else:
        command.send_signal(number)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 128 + number
    assert f"stopped: train@{RUN}" in err
    assert "The same command goes on from here." in err
    assert "its state is saved" in (project.folder / f"logs/train@{RUN}.log").read_text()
    assert list(resume.glob("*/resume.safetensors"))


def test_a_killed_training_is_taken_up_by_the_same_reproduction(tmp_path: Path) -> None:
    """Its process alone is killed; the reproduction starts it once more, and it resumes."""
    whole, killed = (Project(tmp_path / name, [RUN]) for name in ("whole", "killed"))
    for each in (whole, killed):
        slow_down(each)
    whole.repro(f"train@{RUN}")
    command = killed.start("toycircuits", "repro", f"train@{RUN}")
    resume = killed.folder / f".resume/{RUN}"
    while not list(resume.glob("*/resume.safetensors")):
        assert command.poll() is None
        time.sleep(0.01)
    words = ["stages/train.py", RUN]  # not the shell that may stand above it
    (victim,) = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(killed.folder) and process.info["cmdline"][1:3] == words
    ]
    victim.kill()
    _, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    assert f"retried train@{RUN}" in err
    assert "resuming at step" in (killed.folder / f"logs/train@{RUN}.log").read_text()
    assert killed.results() == whole.results()
    assert (killed.folder / "dvc.lock").read_text() == (whole.folder / "dvc.lock").read_text()


def test_one_process_at_a_time_trains_a_run(project: Project) -> None:
    """As when `dvc repro` was killed, but not the stage that it had started."""
    params = project.read_params()
    params["quick"][RUN]["train"] |= {"length": 100_000, "checkpoint_every": 100_000}
    project.write_params(params)
    first = project.start(*TRAIN)
    while not list((project.folder / f".resume/{RUN}").glob("*/trajectory/*")):
        assert first.poll() is None
        time.sleep(0.02)
    try:
        code, _, err = project.run(*TRAIN)
    finally:
        kill(first)
        first.communicate()
    assert code == 2
    text = "another process trains this run; stop it first (it saves its state)"
    assert one_line(err) == f"error: .resume/{RUN}: {text}"


def test_checkpoints_of_older_settings_do_not_stay(project: Project) -> None:
    before = len(project.results(TRAJECTORIES))
    params = project.read_params()
    params["quick"][RUN]["train"]["checkpoint_every"] = 30
    project.write_params(params)
    assert project.run(*TRAIN)[0] == 0
    assert len(project.results(TRAJECTORIES)) < before


# --- whom it trusts ---


def test_nothing_is_unpickled_and_nobody_is_called(finished: Project) -> None:
    """The copy refuses calls that leave the machine, and the reproduction succeeded."""
    logs = {path.stem: json.loads(path.read_text()) for path in finished.audit.glob("*.json")}
    stages = YAML(typ="safe").load((finished.folder / "dvc.yaml").read_text())["stages"]
    assert {name.partition("@")[0] for name in logs} == {*stages}
    assert {name for name, log in logs.items() if log["unpickled"]} == set()
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    assert "no network here" in finished.run("python", "-c", code)[2]


def test_no_code_of_ours_unpickles() -> None:
    root = Path(__file__).resolve().parents[1]
    code = [*root.glob("src/**/*.py"), *root.glob("stages/*.py")]
    assert len(code) > 30
    for path in code:
        assert not re.search(r"torch\.load|\bpickle\b|joblib|allow_pickle", path.read_text()), path


# --- damaged files ---


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_foreign(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path)


def damage_shape(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors | {"inputs": tensors["inputs"][:-1]}, metadata)


def damage_settings(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {"data": metadata["data"] | {"seed": 1}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "not a readable safetensors file"),
        (damage_foreign, "has no metadata of toycircuits"),
        (damage_shape, "shape of inputs: found (511, 5); expected (512, 5)"),
        (damage_settings, "made with other settings of `data`"),
        (Path.unlink, "not a readable safetensors file"),
    ],
)
@pytest.mark.parametrize("stage", ["train", "measure", "ablate"])
def test_damaged_data_are_named(
    project: Project, stage: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(project.folder / DATA)
    code, _, err = project.run("python", f"stages/{stage}.py", RUN)
    assert code == 2
    assert one_line(err).startswith(f"error: {DATA}: {message}")


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The checkpoint with other metadata."""
    tensors, metadata = read_tensors(path)
    change(metadata)
    save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["model"].update(n_layers=3), "Missing key(s) in state_dict"),
        (lambda meta: meta["model"].update(d_model=8, d_head=8), "W_V: this model freezes it"),
        (lambda meta: meta["model"].update(depth=3), "model.depth: unknown key"),
        (lambda meta: meta.pop("model"), "model: found null"),
        (lambda meta: meta.pop("data"), "data: found null"),
        (lambda meta: meta.pop("slice"), "slice: found 'None'; there is no such folder"),
        (lambda meta: meta.update(slice="../../x"), "slice: found '../../x'; there is no such folder"),
    ],
)
@pytest.mark.parametrize("stage", ["measure", "ablate"])
def test_a_trajectory_of_another_architecture_is_named(
    project: Project, stage: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    last = sorted((project.folder / TRAJECTORIES / "seed0").iterdir())[-1]
    rewritten(last, change)
    code, _, err = project.run("python", f"stages/{stage}.py", RUN)
    assert code == 2
    assert message in one_line(err)
    assert f"{TRAJECTORIES}/seed0" in err


def drop_column(path: Path) -> None:
    pd.read_csv(path).drop(columns="accuracy").to_csv(path, index=False)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("training.csv", drop_column, "a table or column is missing: "),
        ("training.csv", Path.unlink, "a table or column is missing: 'training'"),
        ("training.csv", lambda path: path.write_text(""), "No columns to parse from file"),
        ("measure/metrics.csv", lambda path: path.write_text(""), "No columns to parse from file"),
    ],
)
def test_damaged_tables_are_named(
    project: Project, file: str, damage: Callable[[Path], None], message: str
) -> None:
    figures = project.results(f"reports/{RUN}/figures")
    damage(project.folder / f"reports/{RUN}/tables/{RUN}/{file}")
    code, _, err = project.run("python", "stages/render.py", RUN, "list_copy")
    assert code == 2
    assert message in one_line(err)
    assert project.results(f"reports/{RUN}/figures") == figures


# --- disks, folders, browsers ---


def small_files() -> None:
    """In the child: writing more than 4 KiB to one file fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_what_cannot_be_written_is_named_and_nothing_half_written_stays(project: Project) -> None:
    before = project.results("artifacts/data")
    code, _, err = project.run(
        *("python", "stages/generate.py", RUN, "list_copy"), preexec_fn=small_files
    )
    assert code == 1
    assert one_line(err).startswith(f"error: {DATA}: not written: ")
    assert project.results("artifacts/data") == before


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder))
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root and the right to mount")
    yield folder
    subprocess.run(("umount", str(folder)), check=True)


def test_a_disk_that_is_full_while_training_loses_nothing(
    project: Project, tiny_disk: Path
) -> None:
    before = project.results(TRAJECTORIES)
    shutil.rmtree(project.folder / ".resume")
    (project.folder / ".resume").symlink_to(tiny_disk)
    params = project.read_params()
    params["quick"][RUN]["train"]["checkpoint_every"] = 1
    project.write_params(params)
    code, _, err = project.run(*TRAIN)
    assert code == 1
    assert re.match(rf"error: \.resume/{RUN}/\S+: not written: .*[Nn]o space left", one_line(err))
    assert project.results(TRAJECTORIES) == before
    (project.folder / ".resume").unlink()
    assert project.run(*TRAIN)[0] == 0


def test_a_folder_that_cannot_be_written_is_named(project: Project) -> None:
    shutil.rmtree(project.folder / ".resume")
    (project.folder / ".resume").touch()  # root may write everywhere, but not below a file
    code, _, err = project.run(*TRAIN)
    assert code == 1
    assert ".resume" in one_line(err)


DYING = """#!/bin/sh
{chrome} "$@" &
sleep 0.3
kill -9 $!
"""


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", DYING], ids=["at-once", "while-drawing"])
def test_a_browser_that_dies_loses_no_number(project: Project, tmp_path: Path, script: str) -> None:
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    if chrome is None:
        pytest.skip("no browser to start")
    browser = tmp_path / "browser"
    browser.write_text(script.format(chrome=chrome))
    browser.chmod(0o755)
    numbers = project.results(f"artifacts/figures/{RUN}", f"reports/{RUN}/summary")
    for folder in ("artifacts/figures", f"reports/{RUN}/figures", f"reports/{RUN}/summary"):
        shutil.rmtree(project.folder / folder)
    code, _, err = project.run(
        *("python", "stages/render.py", RUN, "list_copy"),
        env=project.environment | {"BROWSER_PATH": str(browser)},
    )
    assert code == 0
    assert "tables and interactive figures are safe" in err
    assert project.results(f"artifacts/figures/{RUN}", f"reports/{RUN}/summary") == numbers
    assert [path.name for path in (project.folder / f"reports/{RUN}/figures").iterdir()] == [
        "NOT_DRAWN.txt"
    ]


def test_a_loss_that_is_no_number_stops_the_training(project: Project) -> None:
    params = project.read_params()
    params["quick"][RUN]["train"] |= {"lr": 1000.0, "weight_decay": 1000.0, "schedule": None}
    params["quick"][RUN]["train"] |= {"log_every": 1, "checkpoint_every": 1}
    project.write_params(params)
    code, _, err = project.run(*TRAIN)
    assert code == 1
    kept = r"the checkpoints before it are in (\S+)"
    found = re.search(
        rf"error: {RUN} seed0 .*: the loss is nan at step (\d+), and was .*; {kept}", err
    )
    assert found, err
    checkpoints = sorted((project.folder / found[2]).glob("*.safetensors"))
    assert len(checkpoints) == int(found[1])


# --- DVC and git ---


def test_a_deleted_cache_costs_no_more_than_computing(project: Project) -> None:
    before = project.results()
    shutil.rmtree(project.folder / ".dvc/cache")
    shutil.rmtree(project.folder / "artifacts")
    assert f"train@{RUN}" in project.repro()
    assert project.results() == before
    assert project.repro() == set()


def test_a_damaged_object_of_the_cache_is_found_and_mended(project: Project) -> None:
    before = project.results()
    assert project.run("toycircuits", "fsck")[0] == 0
    objects = sorted(project.folder.glob(".dvc/cache/files/md5/??/*"))
    victim = next(path for path in objects if path.stat().st_size > 10_000)
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    code, _, err = project.run("toycircuits", "fsck")
    assert code == 1
    assert str(victim.relative_to(project.folder)) in err
    assert project.run("toycircuits", "fsck", "--remove")[0] == 1
    assert not victim.exists()
    shutil.rmtree(project.folder / "artifacts")
    project.repro()
    assert project.results() == before
    assert project.run("toycircuits", "fsck")[0] == 0


def test_a_full_cache_is_an_error(project: Project, tiny_disk: Path) -> None:
    """DVC says so, but ends with exit code 0 and a lock in which all is well."""
    dvc = ("python", "-m", "dvc", "config")
    assert project.run(*dvc, "cache.dir", str(tiny_disk / "cache"))[0] == 0
    params = project.read_params()
    params["quick"][RUN]["train"] |= {"lr": 0.001, "checkpoint_every": 1}
    project.write_params(params)
    code, _, err = project.run("toycircuits", "repro", f"train@{RUN}")
    assert code == 1
    assert "not stored in the cache (is its disk full?)" in err
    assert project.run("toycircuits", "repro", f"train@{RUN}")[0] != 0  # and it stays one


def test_two_reproductions_at_once_do_not_corrupt_each_other(
    finished: Project, tmp_path: Path
) -> None:
    both = Project(tmp_path / "both", [RUN])
    pair = [both.start("python", "-m", "dvc", "repro") for _ in range(2)]
    for process in pair:
        process.communicate(timeout=300)
    both.repro()
    assert both.results() == finished.results()
    assert both.repro() == set()


def test_git_without_commits_and_without_a_branch(finished: Project, tmp_path: Path) -> None:
    new = Project(tmp_path / "new", [RUN], scm=True)
    assert new.run("toycircuits", "repro")[0] == 0
    assert new.results() == finished.results()
    git = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org")
    assert new.run(*git, "add", ".")[0] == 0
    assert new.run(*git, "commit", "--quiet", "--message", "all")[0] == 0
    assert new.run(*git, "checkout", "--quiet", "--detach")[0] == 0
    code, out, err = new.run("toycircuits", "fresh")
    assert code == 0, out + err
    params = new.read_params()
    params["quick"][RUN]["ablate"]["sample"] = [3, 8]
    new.write_params(params)
    assert new.run("toycircuits", "repro")[0] == 0
    assert new.results() != finished.results()
