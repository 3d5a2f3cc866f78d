"""Every engine runs the same commands to the same end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from parallel.graphs import Graph, random_stages
from parallel.test_schedule import chain, until
from project import ROOT, environment_of

pytestmark = pytest.mark.slow


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a dask scheduler with two workers, each started by a command of its own."""
    file = tmp_path / "scheduler.json"
    environment = environment_of(PYTHONPATH=str(ROOT / "src"))
    commands = [
        ["dask", "scheduler", "--scheduler-file", str(file), "--port", "0", "--no-dashboard"],
        *[
            ["dask", "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"]
            for _ in range(2)
        ],
    ]
    processes = []
    log = (tmp_path / "dask.log").open("w")
    for command in commands:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
        until(file.exists)
    yield json.loads(file.read_text())["address"]
    for process in reversed(processes):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log.close()


def test_a_running_scheduler_and_its_workers(tmp_path: Path, scheduler: str) -> None:
    stages = random_stages(3)
    serial, graph = Graph(tmp_path / "serial", stages), Graph(tmp_path / "graph", stages)
    serial.dvc("repro", "--keep-going", check=False)
    graph.run(keep_going=True, engine=["dask", None, scheduler])
    assert graph.lock() == serial.lock()


def test_a_lost_worker_is_made_up_for(tmp_path: Path, scheduler: str) -> None:
    """Its command dies with it, and another worker runs the command once more."""
    graph = chain(
        tmp_path / "graph",
        x="if [ -e on ]; then cat source > x; else echo $PPID > on; sleep 600; fi",
    )
    process = graph.start(targets=["x"], engine=["dask", None, scheduler])
    on = graph.folder / "on"
    until(lambda: on.exists() and on.read_text().strip())
    time.sleep(1)
    os.kill(int(on.read_text()), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert (graph.folder / "x").read_text() == "0\n"


def test_a_signal_reaches_the_commands_of_a_cluster(tmp_path: Path, scheduler: str) -> None:
    saves = "trap 'echo saved > state; exit 143' TERM; touch on; while true; do sleep 0.1; done"
    graph = chain(tmp_path / "graph", x=saves)
    process = graph.start(targets=["x"], engine=["dask", None, scheduler])
    until(lambda: (graph.folder / "on").exists())
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (graph.folder / "state").read_text() == "saved\n"


def test_a_second_signal_ends_it_where_all_workers_are_lost(tmp_path: Path, scheduler: str) -> None:
    graph = chain(tmp_path / "graph", x="echo $PPID > on; sleep 600")
    process = graph.start(targets=["x"], engine=["dask", None, scheduler])
    on = graph.folder / "on"
    until(lambda: on.exists() and on.read_text().strip())
    alive = [each for each in psutil.Process().children() if each.status() != "zombie"]
    nannies = [each for each in alive if "worker" in each.cmdline()]
    assert len(nannies) == 2
    for nanny in nannies:  # first: it would start another worker
        lost = [nanny, *nanny.children(recursive=True)]
        for each in lost:
            each.kill()
    time.sleep(2)
    for _ in range(2):
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(1)
    process.communicate(timeout=30)
    assert process.returncode == 130
