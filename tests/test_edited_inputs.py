"""Edits of code, data and params while a stage runs: its result is that of what is recorded.

`toycircuits repro` records the inputs as they were before the command, and `dvc repro` as they are
after it. Most edits here are taken back before the stage ends, so that no hash tells of them.
"""

import copy
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_failures import DATA, RUN, TRAJECTORIES
from project import AUDIT, Project
from safetensors import safe_open
from safetensors.torch import save_file

from toycircuits.core.portable import PINS

pytestmark = pytest.mark.slow

TASK = "src/toycircuits/experiments/list_copy/task.py"
STAGE = f"train@{RUN}"
# Stops the training at one event of the interpreter until the file `go` is there, and tells of a
# later one. An event is its name and a part of its first argument.
PAUSE = """
if stage == {stage!r}:
    import time
    pauses, tells = {pauses!r}, {tells!r}

    def watch(event, arguments):
        global pauses, tells
        here = [event, str(arguments[0])] if arguments else [event, ""]
        if pauses and here[0] == pauses[0] and pauses[1] in here[1]:
            pauses = None
            open("paused", "w").close()
            end = time.monotonic() + 60  # the test may have been killed
            while not os.path.exists("go") and time.monotonic() < end:
                time.sleep(0.01)
        elif not pauses and tells and here[0] == tells[0] and tells[1] in here[1]:
            tells = None
            open("passed", "w").close()

    sys.addaudithook(watch)
"""


def pinned(project: Project) -> dict[str, str]:
    """With the variables of portable results: without them, the stage would start twice."""
    return project.environment | PINS


def pause(project: Project, pauses: tuple[str, str], tells: tuple[str, str]) -> None:
    text = PAUSE.format(stage=STAGE, pauses=pauses, tells=tells)
    (project.folder / "src/sitecustomize.py").write_text(AUDIT + text)


def wait_for(project: Project, name: str, process: "subprocess.Popen[str]") -> None:
    while not (project.folder / name).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def triple_the_loss(file: Path) -> None:
    text = file.read_text()
    start = text.index("def loss(")
    body = text[start:].replace("    return ", "    return 3 * ", 1)
    file.write_text(text[:start] + body)


def change_the_data(file: Path) -> None:
    with safe_open(file, framework="pt") as data:
        tensors = {name: data.get_tensor(name).flip(0).contiguous() for name in data.keys()}  # noqa: SIM118
        metadata = data.metadata()
    save_file(tensors, file, metadata)


def change_the_params(file: Path) -> None:
    text = file.read_text()
    assert "lr: " in text
    file.write_text(text.replace("lr: ", "lr: 1"))


# What is edited, how, and the events at which the edit is made and taken back. A file is opened, or
# the first checkpoint is renamed, when the data have been read.
EDITS: dict[str, tuple[str, Callable[[Path], None], tuple[str, str], tuple[str, str]]] = {
    "code": (TASK, triple_the_loss, ("open", "list_copy/task.py"), ("open", "list_copy/model.py")),
    "data": (DATA, change_the_data, ("open", "core/train_run.py"), ("os.rename", "trajectory")),
    "params": (
        "params.yaml",
        change_the_params,
        ("open", "core/portable.py"),
        ("open", "core/train_run.py"),
    ),
}
REPRO = ("toycircuits", "repro", "--force", "--single-item", STAGE)
DVC = ("python", "-m", "dvc", "repro", "--force", "--single-item", STAGE)


def train_with_an_edit(project: Project, kind: str, command: tuple[str, ...]) -> tuple[int, str]:
    """Edit before the training reads, and take it back after that: exit code, what it says."""
    name, edit, begins, ends = EDITS[kind]
    file = project.folder / name
    pause(project, begins, ends)
    before = file.read_bytes()
    process = project.start(*command, env=pinned(project))
    wait_for(project, "paused", process)
    edit(file)
    (project.folder / "go").touch()
    if kind == "data" and command != DVC:  # `toycircuits repro` kills it before a checkpoint
        time.sleep(0.7)
    else:
        wait_for(project, "passed", process)
    file.write_bytes(before)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    copy = finished.copy(tmp_path / "project")
    pause(copy, ("no", ""), ("no", ""))
    return copy


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("code", ("-j", "1")),
        ("code", ("-j", "2")),
        ("code", ("--engine", "dask", "-j", "1")),
        ("data", ()),
        ("params", ()),
    ],
)
def test_an_edit_that_was_taken_back_is_in_no_result(
    finished: Project, project: Project, kind: str, options: tuple[str, ...]
) -> None:
    code, text = train_with_an_edit(project, kind, (*REPRO, *options))
    assert code == 0, text
    assert f"edited before {STAGE} had read it" in text
    assert project.results(TRAJECTORIES) == finished.results(TRAJECTORIES)
    assert "up to date" in project.run("toycircuits", "repro", "--dry", STAGE)[1]


@pytest.mark.parametrize("kind", list(EDITS))
def test_plain_dvc_records_nothing_of_an_edit(
    finished: Project, project: Project, kind: str
) -> None:
    lock = (project.folder / "dvc.lock").read_bytes()
    code, text = train_with_an_edit(project, kind, DVC)
    assert code != 0, text
    assert Path(EDITS[kind][0]).name in text
    assert "edited while" in text
    assert (project.folder / "dvc.lock").read_bytes() == lock
    project.repro("--single-item", STAGE)
    assert project.results(TRAJECTORIES) == finished.results(TRAJECTORIES)


@pytest.mark.parametrize("name", ["stages/train.py", "src/toycircuits/__init__.py"])
def test_plain_dvc_records_nothing_of_an_edit_of_what_python_reads_first(
    project: Project, name: str
) -> None:
    """Python has read these before the stage could look. They are compared with what runs."""
    file = project.folder / name
    before = file.read_bytes()
    pause(project, ("open", "core/train_run.py"), ("open", "list_copy/task.py"))
    file.write_bytes(before + b"\nEDITED = 1\n")
    process = project.start(*DVC, env=pinned(project))
    wait_for(project, "paused", process)
    file.write_bytes(before)
    (project.folder / "go").touch()
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0, out + err
    assert f"{file.name}: edited while" in err


def test_a_change_of_the_scale_is_not_recorded_under_the_other_one(project: Project) -> None:
    """DVC chooses the keys of a scale when it starts, and the command reads `scale` later."""
    params = project.read_params()
    params["paper"][RUN] = copy.deepcopy(params["quick"][RUN])
    params["paper"][RUN]["train"]["length"] -= 6
    project.write_params(params)
    file = project.folder / "params.yaml"
    before, lock = file.read_text(), (project.folder / "dvc.lock").read_bytes()
    pause(project, ("open", "core/train_run.py"), ("no", ""))
    process = project.start(*DVC, env=pinned(project))
    wait_for(project, "paused", process)
    file.write_text(before.replace("scale: quick", "scale: paper"))
    (project.folder / "go").touch()
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0, out + err
    assert "params.yaml: edited while" in out + err
    assert (project.folder / "dvc.lock").read_bytes() == lock


def test_an_edit_after_the_imports_costs_no_training(finished: Project, project: Project) -> None:
    pause(project, ("os.rename", "resume.safetensors"), ("no", ""))  # the first state is written
    process = project.start(*REPRO)
    wait_for(project, "paused", process)
    triple_the_loss(project.folder / TASK)
    (project.folder / "go").touch()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "edited" not in err
    assert project.results(TRAJECTORIES) == finished.results(TRAJECTORIES)
    stale = project.run("toycircuits", "repro", "--dry", "--single-item", STAGE)[1]
    assert f"Running stage '{STAGE}'" in stale


def test_under_plain_dvc_such_an_edit_costs_a_few_seconds(
    finished: Project, project: Project
) -> None:
    """The state of the training stays. If the edit is taken back, the next run ends at once."""
    pause(project, ("os.rename", "resume.safetensors"), ("no", ""))
    before = (project.folder / TASK).read_bytes()
    process = project.start(*DVC, env=pinned(project))
    wait_for(project, "paused", process)
    triple_the_loss(project.folder / TASK)
    (project.folder / "go").touch()
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "task.py: edited while this stage ran; its results are not recorded" in err
    (project.folder / TASK).write_bytes(before)
    code, _, err = project.run(*DVC)
    assert code == 0
    assert "resuming at step" in err
    assert project.results(TRAJECTORIES) == finished.results(TRAJECTORIES)


def test_edits_at_random_moments_of_a_whole_reproduction(
    finished: Project, project: Project
) -> None:
    """With forks of a warm interpreter, two at a time; then what failed runs again."""
    draw = random.Random(3)
    file = project.folder / TASK
    before = file.read_bytes()
    process = project.start("toycircuits", "repro", "--force", "-j", "2", "--keep-going")
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        time.sleep(draw.uniform(0, 2))
        triple_the_loss(file)
        time.sleep(draw.uniform(0, 1))
        file.write_bytes(before)
    process.communicate(timeout=600)
    code, out, err = project.run("toycircuits", "repro")
    assert code == 0, out + err
    assert project.results() == finished.results()


@pytest.mark.parametrize(
    "name", ["src/toycircuits/__init__.py", "src/toycircuits/from_source.py", TASK]
)
def test_cached_bytecode_of_an_edit_is_not_run(project: Project, name: str) -> None:
    """It passes for that of the file, which has the same size and time."""
    file = project.folder / name
    before, stat = file.read_text(), file.stat()
    module = name.removeprefix("src/").removesuffix(".py").removesuffix("/__init__")
    compile_it = f"import py_compile; py_compile.compile({str(file)!r})"
    file.write_text('"""E' + before[4:])  # another first letter
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert project.run("python", "-c", compile_it)[0] == 0
    file.write_text(before)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    show = f"import {module.replace('/', '.')} as module; print(module.__doc__)"
    code, out, err = project.run("python", "-c", show, env=project.stage_environment)
    if name == TASK:
        assert (code, out.splitlines()[0]) == (0, before.splitlines()[0].strip('"'))
    else:  # Python has run it before anybody could look
        assert code == 1
        assert "Python has run other code than is in it; remove" in err
