"""`toycircuits repro` as a person meets it."""

import contextlib
import io
import itertools
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parallel.graphs import Graph, random_stages
from project import Project
from rich.console import Console

from dvc_parallel.display import Display, last_line
from dvc_parallel.outcome import log_file
from toycircuits.commands import repro as command

RUN = "list_copy_10"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which nothing has run."""
    return Project(tmp_path_factory.mktemp("command") / "project", [RUN])


def one_line(err: str) -> str:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train@nothing"], "error: Stage 'train@nothing' not found inside 'dvc.yaml' file"),
        (["--engine", "cloud"], "error: --engine: found 'cloud'; allowed: local, dask, slurm,"),
        (["--scheduler", "tcp://x:1"], "error: --scheduler: found 'tcp://x:1'; allowed with"),
        (["--engine", "slurm"], "error: --engine slurm: dask's configuration: "),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(
    project: Project, arguments: list[str], message: str
) -> None:
    code, out, err = project.run("toycircuits", "repro", *arguments)
    assert code == 2, err
    assert one_line(err).startswith(message)
    assert out == ""
    assert not (project.folder / "artifacts").exists()


@pytest.mark.slow
def test_a_target_that_is_nothing_says_where_to_look(project: Project) -> None:
    code, _, err = project.run("toycircuits", "repro", "list_copy")
    assert code == 2
    allowed = "a stage (`dvc stage list`), a run (`toycircuits list`) or an experiment"
    assert one_line(err).endswith(f"; allowed: {allowed}: {RUN}")


@pytest.mark.slow
def test_records_that_cannot_be_read_are_named_before_anything_runs(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", [RUN])
    file = project.folder / "reports/stages.json"
    file.write_text("[]")
    code, _, err = project.run("toycircuits", "repro")
    assert code == 2
    assert one_line(err).startswith("error: reports/stages.json: found []; allowed: ")
    assert file.read_text() == "[]"
    assert not (project.folder / "artifacts").exists()


PARAMS: dict[str, Any] = {
    "experiments": {"e": {}, "both": {}, "publish": {}},
    "runs": {"r": {}, "both": {}, "train": {}},
}


@pytest.mark.parametrize(
    ("target", "stages"),
    [
        ("e", ["section@e"]),
        ("r", ["ablate@r", "measure@r"]),
        ("both", ["section@both"]),
        ("publish", ["publish"]),
        ("train", ["train"]),
        ("data.txt.dvc", ["data.txt.dvc"]),
    ],
)
def test_experiments_and_runs_stand_for_their_last_stages(target: str, stages: list[str]) -> None:
    names = {"publish", "train", "train@r"}
    assert command._stages_of(target, names, PARAMS) == stages
    assert command._stages_of(target, names, {"experiments": None}) == [target]


@pytest.mark.slow
def test_a_bad_setting_is_named_before_anything_runs(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", [RUN])
    params = project.read_params()
    params["quick"][RUN]["ablate"]["sample"] = [8, 99]
    project.write_params(params)
    code, _, err = project.run("toycircuits", "repro")
    assert code == 2
    assert f"quick.{RUN}" in one_line(err)
    assert not (project.folder / "artifacts").exists()
    assert not (project.folder / "dvc.lock").exists()


@pytest.mark.slow
def test_dry_says_what_would_run_and_what_may(project: Project) -> None:
    code, out, _ = project.run("toycircuits", "repro", "--dry", f"measure@{RUN}")
    assert code == 0
    assert out.splitlines() == [
        f"Running stage 'generate@{RUN}':",
        '> PYTHONPATH=src python stages/generate.py "$DVC_STAGE"',
        f"may run then: train@{RUN}, measure@{RUN}",
    ]
    _, out, _ = project.run("toycircuits", "repro", "--dry", "--force", f"train@{RUN}")
    assert re.findall(r"stage '(.*)'", out) == [f"generate@{RUN}", f"train@{RUN}"]
    assert not (project.folder / "artifacts").exists()


@pytest.mark.slow
def test_an_experiment_and_a_run_are_targets(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", ["linear_regression"])
    run = "linear_regression_h1"
    _, out, _ = project.run("toycircuits", "repro", "--dry", run)
    (may,) = [line for line in out.splitlines() if line.startswith("may run")]
    stages = may.removeprefix("may run then: ").split(", ")
    assert stages[0] == f"train@{run}"
    follow = [f"ablate@{run}", f"measure@{run}", f"release@{run}"]
    assert sorted(stages[1:]) == follow  # the order depends on the graph
    code, out, _ = project.run("toycircuits", "repro", "--dry", "linear_regression")
    assert code == 0
    assert project.run("toycircuits", "repro", "--dry", "section@linear_regression")[1] == out
    assert out.endswith("section@linear_regression\n")


@pytest.mark.slow
def test_a_failure_shows_its_last_lines_and_what_waits_for_it(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    stage = project.folder / "stages/measure.py"
    text = stage.read_text()
    stage.write_text(
        text.replace('    """Write the tables', '    raise ValueError("a slip")\n    """')
    )
    assert stage.read_text() != text
    code, _, err = project.run("toycircuits", "repro", "--keep-going")
    assert code == 1
    assert f"failed measure@{RUN}" in err
    assert re.search(r"\| ValueError: a slip\n", err)
    assert f"logs/measure@{RUN}.log" in err
    assert f"\nfailed: measure@{RUN}\n" in err
    assert re.search(rf"\nnot run: .*\brender@{RUN}\b", err)
    stage.write_text(text)
    assert project.run("toycircuits", "repro")[0] == 0
    code, _, err = project.run("toycircuits", "repro")
    assert (code, err) == (0, "Data and pipelines are up to date.\n")
    figures = project.folder / "src/toycircuits/experiments/list_copy/figures/draw.py"
    figures.write_text(figures.read_text() + "\n")
    for words in (["toycircuits", "repro"], ["python", "-m", "dvc", "repro"]):
        _, out, _ = project.run(*words, "--dry")
        assert re.findall(r"Running stage '(.*)'", out) == [f"render@{RUN}"]


# --- GPUs ---


@pytest.mark.slow
def test_each_command_has_a_device_of_its_own(tmp_path: Path) -> None:
    clock = "python3 -c 'import time; print(time.time())'"
    stages = {
        f"s{n}": {
            "cmd": f"(echo $CUDA_VISIBLE_DEVICES; {clock}; sleep 1; {clock}) > s{n}",
            "outs": [f"s{n}"],
        }
        for n in range(6)
    }
    graph = Graph(tmp_path / "graph", stages)
    graph.run(engine=["local", 4], devices=["3", "7"])
    used: dict[str, list[tuple[float, float]]] = {"3": [], "7": []}
    for name in stages:
        device, start, end = (graph.folder / name).read_text().split()
        used[device].append((float(start), float(end)))
    for spans in used.values():
        assert spans, "a device lay idle"
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


# --- what is shown ---

BAR = "r seed0 (1 of 2):  40%|████      | 640/1600 [00:22<00:33, 28.8step/s, loss=7.9e-07]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        (f"note\n{BAR}", "r seed0 (1 of 2) 40% 640/1600 [00:22<00:33, 28.8step/s, loss=7.9e-07]"),
        (f"{BAR}\r{BAR.replace('40%', '41%')}", "r seed0 (1 of 2) 41% 640/1600 "),
        ("x" * 10_000 + "\nlast", "last"),
    ],
)
def test_the_last_line_of_a_log(tmp_path: Path, text: str, line: str) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text(text)
    assert last_line(log).startswith(line)
    assert bool(last_line(log)) == bool(line)


def test_a_terminal_shows_a_table_and_a_file_lines(tmp_path: Path) -> None:
    log_file(tmp_path, "train@r").write_text(BAR)
    shown = {}
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=120)
        with Display(console, 5, tmp_path) as display:
            display.on_change("generate@e", "unchanged")
            display.on_change("train@r", "running")
            display.on_change("measure@q", "failed", "exit code 3")
            assert display.summary() == "1 unchanged, 1 running, 1 failed, 2 waiting"
            table = console.render_lines(display._table())
        shown[terminal] = stream.getvalue()
    row = "".join(segment.text for segment in table[0])
    assert row.startswith("train@r")
    assert "r seed0 (1 of 2) 40% 640/1600 [00:22<00:33, 28.8step/s, loss=7.9e-07]" in row
    assert shown[False] == " running train@r\n  failed measure@q: exit code 3\n"
    assert "\x1b[" in shown[True]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_dvc_draws_no_bars_through_the_table(tmp_path: Path) -> None:
    import fcntl
    import pty
    import termios

    graph = Graph(tmp_path / "graph", random_stages(4, 4, failing=0))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        graph.command(), cwd=graph.folder, env=graph.environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while new := os.read(ours, 4096):
            shown += new
    assert process.wait() == 0
    assert b"done s0" in shown
    assert b"file" not in shown, shown
    assert b"!" not in shown, shown


def test_variables_of_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc_parallel import engines

    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for jobs, threads in ((2, "4"), (3, "2"), (16, "1")):
        with engines.open_engine("local", jobs) as engine:
            assert engine.environment["OMP_NUM_THREADS"] == threads
            assert "MKL_NUM_THREADS" not in engine.environment
            assert engine.places() == jobs
