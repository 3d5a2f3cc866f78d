"""Kills, faults and damage: no run is lost, and what is wrong is one line.

Kills and signals meet real processes. Bad input meets each stage once in a process of its own, and
otherwise in this one, which spares the seconds that a start takes.
"""

import json
import os
import random
import re
import resource
import runpy
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
from project import ROOT, Project
from ruamel.yaml import YAML
from safetensors.torch import save_file

from toycircuits.core.checkpoints import METADATA_KEY, MODELS, read_tensors, write_tensors

pytestmark = pytest.mark.slow
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


# --- kill and resume ---


MANY = {"length": 120, "checkpoint_every": 1}
ENDLESS = {"length": 100_000, "checkpoint_every": 100_000}


def slow_down(project: Project) -> None:
    """Write a state and a checkpoint at every step: most kills then meet a writer."""
    code = project.folder / "src/toycircuits/core/training.py"
    text = code.read_text()
    assert "RESUME_EVERY = 20.0" in text
    code.write_text(text.replace("RESUME_EVERY = 20.0", "RESUME_EVERY = -1.0"))
    change_training(project, **MANY)


@pytest.fixture(scope="module")
def whole(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A slowed project whose training was not interrupted."""
    project = finished.copy(tmp_path_factory.mktemp("whole") / "project")
    slow_down(project)
    assert project.repro(f"train@{RUN}") == {f"train@{RUN}"}
    assert len(project.results(TRAJECTORIES)) == 2 * (MANY["length"] + 1)
    return project


def kill(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> None:
    os.killpg(process.pid, number)


def wait_for(process: "subprocess.Popen[str]", folder: Path, pattern: str, number: int = 1) -> None:
    """Wait until `folder` has `number` files of that pattern, while `process` lives."""
    while len(list(folder.glob(pattern))) < number:
        assert process.poll() is None
        time.sleep(0.002)


def test_killed_again_and_again_a_run_ends_with_the_same_bytes(
    project: Project, whole: Project
) -> None:
    """The kills are so many steps apart, and not seconds, as machines differ."""
    slow_down(project)
    rng = random.Random(0)
    resumed = 0
    first = project.start("python", "-m", "dvc", "repro", f"train@{RUN}")
    resume = project.folder / f".resume/{RUN}"
    wait_for(first, resume, "*/resume.safetensors")
    kill(first)
    first.communicate()
    for _ in range(6):
        before = len(list(resume.glob("*/trajectory/*.safetensors")))
        training = project.start(*TRAIN, env=project.stage_environment)
        wait_for(training, resume, "*/trajectory/*.safetensors", before + rng.randint(1, 12))
        time.sleep(rng.random() / 200)  # anywhere within a step
        kill(training)
        _, err = training.communicate()
        resumed += "resuming at step" in err
    assert resumed == 6
    assert project.repro(f"train@{RUN}") == {f"train@{RUN}"}
    assert project.results() == whole.results()
    assert not resume.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_state_to_go_on_from(
    project: Project, whole: Project, number: int
) -> None:
    change_training(project, **MANY)
    training = project.start(*TRAIN, env=project.stage_environment)
    wait_for(training, project.folder / f".resume/{RUN}", "*/trajectory/*")  # the loop has begun
    training.send_signal(number)
    _, err = training.communicate(timeout=600)
    assert training.returncode == 128 + number
    stopped = re.search(rf"^{RUN} seed\S+ .*: stopped at step (\d+); ", err, re.MULTILINE)
    assert stopped, err
    code, _, err = project.run(*TRAIN, env=project.stage_environment)
    assert code == 0
    assert f"resuming at step {stopped[1]}" in err
    assert project.results(TRAJECTORIES) == whole.results(TRAJECTORIES)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_reproduction_ends_in_order(project: Project, number: int) -> None:
    """SIGINT comes to all processes, as from a terminal; SIGTERM to the command alone."""
    change_training(project, **ENDLESS)
    command = project.start("toycircuits", "repro", f"train@{RUN}")
    resume = project.folder / f".resume/{RUN}"
    wait_for(command, resume, "*/trajectory/*")
    if number == signal.SIGINT:
        kill(command, number)
    else:
        command.send_signal(number)
    _, err = command.communicate(timeout=600)
    assert command.returncode == 128 + number
    assert f"stopped: train@{RUN}" in err
    assert "The same command goes on from here." in err
    assert ": stopped at step" in (project.folder / f"logs/train@{RUN}.log").read_text()
    assert list(resume.glob("*/resume.safetensors"))


def test_a_killed_training_is_taken_up_by_the_same_reproduction(
    project: Project, whole: Project
) -> None:
    """Its process alone is killed; the reproduction starts it once more, and it resumes."""
    slow_down(project)
    command = project.start("toycircuits", "repro", f"train@{RUN}")
    wait_for(command, project.folder / f".resume/{RUN}", "*/resume.safetensors")
    words = ["stages/train.py", RUN]  # not the shell that may stand above it
    (victim,) = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(project.folder) and process.info["cmdline"][1:3] == words
    ]
    victim.kill()
    _, err = command.communicate(timeout=600)
    assert command.returncode == 0, err
    assert f"retried train@{RUN}" in err
    assert "resuming at step" in (project.folder / f"logs/train@{RUN}.log").read_text()
    assert project.results() == whole.results()
    assert (project.folder / "dvc.lock").read_text() == (whole.folder / "dvc.lock").read_text()


def test_one_process_at_a_time_trains_a_run(project: Project, stage: Stage) -> None:
    """As when `dvc repro` was killed, but not the stage that it had started."""
    change_training(project, **ENDLESS)
    first = project.start(*TRAIN, env=project.stage_environment)
    wait_for(first, project.folder / f".resume/{RUN}", "*/trajectory/*")
    try:
        code, err = stage("train", RUN)
    finally:
        kill(first)
        first.communicate()
    assert code == 2
    text = "another process trains this run; stop it first (it saves its state)"
    assert one_line(err) == f"error: .resume/{RUN}: {text}"


def test_checkpoints_of_older_settings_do_not_stay(project: Project, stage: Stage) -> None:
    before = len(project.results(TRAJECTORIES))
    change_training(project, checkpoint_every=30)
    assert stage("train", RUN)[0] == 0
    assert 0 < len(project.results(TRAJECTORIES)) < before


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
    code = [*ROOT.glob("src/**/*.py"), *ROOT.glob("stages/*.py")]
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


@pytest.mark.parametrize("name", ["train", "measure", "ablate"])
def test_a_stage_names_bad_input_and_ends_with_exit_code_2(project: Project, name: str) -> None:
    damage_truncate(project.folder / DATA)
    command = ("python", f"stages/{name}.py", RUN)
    code, out, err = project.run(*command, env=project.stage_environment)
    assert (code, out) == (2, "")
    assert one_line(err).startswith(f"error: {DATA}: not a readable safetensors file")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "not a readable safetensors file"),
        (damage_foreign, "no metadata of toycircuits"),
        (damage_shape, "found (511, 5); expected"),
        (damage_settings, "made with other settings of `data`"),
        (Path.unlink, "not a readable safetensors file"),
    ],
)
@pytest.mark.parametrize("name", ["train", "measure", "ablate"])
def test_damaged_data_are_named(
    project: Project, stage: Stage, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(project.folder / DATA)
    code, err = stage(name, RUN)
    assert code == 2
    assert one_line(err).startswith(f"error: {DATA}: ")
    assert message in err


Metadata = dict[str, Any]


def rewrite_checkpoint(project: Project, change: Callable[[Metadata], Any]) -> None:
    """Give the last checkpoint of a model, which `measure` reads, other metadata."""
    path = sorted((project.folder / TRAJECTORIES / "seed0").iterdir())[-1]
    tensors, metadata = read_tensors(path)
    change(metadata)
    save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})


def rewrite_weights(project: Project, change: Callable[[Metadata], Any]) -> None:
    """Give the same model other metadata in the released weights, which `ablate` reads."""
    tensors, metadata = read_tensors(project.folder / WEIGHTS)
    change(metadata[MODELS]["seed0"])
    save_file(tensors, project.folder / WEIGHTS, {METADATA_KEY: json.dumps(metadata)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["model"].update(n_layers=3), "Missing key(s) in state_dict"),
        (lambda meta: meta["model"].update(d_model=8, d_head=8), "W_V: this model freezes it"),
        (lambda meta: meta["model"].update(depth=3), "model.depth: unknown key"),
        (lambda meta: meta.pop("model"), "model: found null"),
        (lambda meta: meta.pop("data"), "data: found null"),
        (lambda meta: meta.pop("slice"), "slice: found 'None'; "),
        (lambda meta: meta.update(slice="../../x"), "slice: found '../../x'; "),
    ],
)
@pytest.mark.parametrize(
    ("name", "rewrite", "place"),
    [
        ("measure", rewrite_checkpoint, f"{TRAJECTORIES}/seed0"),
        ("ablate", rewrite_weights, f"{WEIGHTS}/seed0"),
    ],
)
def test_weights_of_another_architecture_are_named(
    project: Project,
    stage: Stage,
    name: str,
    rewrite: Callable[[Project, Callable[[Metadata], Any]], None],
    place: str,
    change: Callable[[Metadata], Any],
    message: str,
) -> None:
    rewrite(project, change)
    code, err = stage(name, RUN)
    assert code == 2
    assert message in one_line(err)
    assert place in err


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
    project: Project, stage: Stage, file: str, damage: Callable[[Path], None], message: str
) -> None:
    figures = project.results(f"reports/{RUN}/figures")
    damage(project.folder / f"reports/{RUN}/tables/{RUN}/{file}")
    code, err = stage("render", RUN, "list_copy")
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
        *("python", "stages/generate.py", RUN, "list_copy"),
        env=project.stage_environment,
        preexec_fn=small_files,
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
    project: Project, stage: Stage, tiny_disk: Path
) -> None:
    before = project.results(TRAJECTORIES)
    shutil.rmtree(project.folder / ".resume")
    (project.folder / ".resume").symlink_to(tiny_disk)
    change_training(project, checkpoint_every=1)
    code, err = stage("train", RUN)
    assert code == 1
    assert re.match(rf"error: \.resume/{RUN}/\S+: not written: .*[Nn]o space left", one_line(err))
    assert project.results(TRAJECTORIES) == before
    (project.folder / ".resume").unlink()
    assert stage("train", RUN)[0] == 0


def test_a_folder_that_cannot_be_written_is_named(project: Project, stage: Stage) -> None:
    shutil.rmtree(project.folder / ".resume")
    (project.folder / ".resume").touch()  # root may write everywhere, but not below a file
    code, err = stage("train", RUN)
    assert code == 1
    assert ".resume" in one_line(err)


DYING = """#!/bin/sh
{chrome} "$@" &
sleep 0.3
kill -9 $!
"""


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", DYING], ids=["at-once", "while-drawing"])
def test_a_browser_that_dies_loses_no_number(
    project: Project,
    stage: Stage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
) -> None:
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    if chrome is None:
        pytest.skip("no browser to start")
    browser = tmp_path / "browser"
    browser.write_text(script.format(chrome=chrome))
    browser.chmod(0o755)
    numbers = project.results(f"artifacts/figures/{RUN}", f"reports/{RUN}/summary")
    for folder in ("artifacts/figures", f"reports/{RUN}/figures", f"reports/{RUN}/summary"):
        shutil.rmtree(project.folder / folder)
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    code, err = stage("render", RUN, "list_copy")
    assert code == 0
    assert "tables and interactive figures are safe" in err
    assert project.results(f"artifacts/figures/{RUN}", f"reports/{RUN}/summary") == numbers
    assert [path.name for path in (project.folder / f"reports/{RUN}/figures").iterdir()] == [
        "NOT_DRAWN.txt"
    ]


def test_a_loss_that_is_no_number_stops_the_training(project: Project, stage: Stage) -> None:
    change_training(project, lr=1000.0, weight_decay=1000.0, schedule=None)
    change_training(project, log_every=1, checkpoint_every=1)
    code, err = stage("train", RUN)
    assert code == 1
    folder = r"the checkpoints before it are in (\S+)"
    stopped = re.search(
        rf"error: {RUN} seed0 .*: the loss is nan at step (\d+), and was .*; {folder}", err
    )
    assert stopped, err
    checkpoints = sorted((project.folder / stopped[2]).glob("*.safetensors"))
    assert len(checkpoints) == int(stopped[1])


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
    with (project.folder / ".dvc/config").open("a") as file:
        file.write(f"[cache]\n    dir = {tiny_disk / 'cache'}\n")
    change_training(project, lr=0.001, checkpoint_every=1)
    code, _, err = project.run("toycircuits", "repro", f"train@{RUN}")
    assert code == 1
    assert "not stored in the cache (is its disk full?)" in err
    assert project.run("toycircuits", "repro", f"train@{RUN}")[0] != 0  # and it stays one


def test_two_reproductions_at_once_do_not_corrupt_each_other(
    finished: Project, tmp_path: Path
) -> None:
    """From nothing to final weights: more stages would add time, and no other kind of conflict."""
    both, target = Project(tmp_path / "both", [RUN]), f"release@{RUN}"
    pair = [both.start("python", "-m", "dvc", "repro", target) for _ in range(2)]
    for process in pair:
        process.communicate(timeout=600)
    both.repro(target)
    folders = ("artifacts/data", "artifacts/trajectories", "reports/weights")
    assert both.results(*folders) == finished.results(*folders)
    assert both.repro(target) == set()


def test_git_without_commits_and_without_a_branch(finished: Project, project: Project) -> None:
    shutil.rmtree(project.folder / ".git")
    assert project.run("git", "init", "--quiet")[0] == 0

    def reproduce(sample: list[int], *targets: str) -> None:
        params = project.read_params()
        params["quick"][RUN]["ablate"]["sample"] = sample
        project.write_params(params)
        code, out, err = project.run("toycircuits", "repro", *targets)
        assert code == 0, out + err

    sample = project.read_params()["quick"][RUN]["ablate"]["sample"]
    reproduce([3, 8], f"ablate@{RUN}")
    assert project.results() != finished.results()
    project.commit()
    assert project.run("git", "checkout", "--quiet", "--detach")[0] == 0
    reproduce(sample, "--force", "--single-item", f"ablate@{RUN}")
    reproduce(sample)
    assert project.results() == finished.results()
    code, out, err = project.run("toycircuits", "fresh")
    assert code == 0, out + err
