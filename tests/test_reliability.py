"""Kills and signals, which meet real processes: no run is lost."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from made_failures import RUN, TRAIN, TRAJECTORIES, Stage, change_training, one_line, project, stage
from project import Project

pytestmark = pytest.mark.slow


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
    words = ["stages/train.py", f"train@{RUN}"]  # not the shell that may stand above it
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
