"""Commands as jobs of a real Slurm, such as `slurm.sh start` brings up; opt-in."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from parallel.graphs import Graph, random_stages
from parallel.test_schedule import chain, until
from ruamel.yaml import YAML

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TOYCIRCUITS_SLURM") != "1" or not shutil.which("sbatch"),
        reason="needs tests/parallel/slurm.sh start, and TOYCIRCUITS_SLURM=1",
    ),
]


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration of dask-jobqueue, as a user would write it."""
    folder = tmp_path / "dask"
    folder.mkdir()
    settings = {
        **{"cores": 1, "processes": 1, "memory": "1GB", "walltime": "00:10:00", "queue": "short"},
        # Scheduler and workers are on this machine.
        "interface": "lo",
        "local-directory": str(folder),
        "log-directory": str(folder),
    }
    with (folder / "jobqueue.yaml").open("w") as file:
        YAML().dump({"jobqueue": {"slurm": settings}}, file)
    monkeypatch.setenv("DASK_CONFIG", str(folder))


def jobs() -> list[str]:
    """Numbers of our jobs that wait or run."""
    command = ["squeue", "--me", "--noheader", "--states=PD,R", "--format=%A"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_jobs_of_slurm(tmp_path: Path) -> None:
    stages = random_stages(3)
    serial, graph = Graph(tmp_path / "serial", stages), Graph(tmp_path / "graph", stages)
    serial.dvc("repro", "--keep-going", check=False)
    graph.run(keep_going=True, engine=["slurm", 2])
    assert graph.lock() == serial.lock()
    until(lambda: not jobs())


@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("signal", [[], ["--signal=KILL", "--full"]], ids=["scancel", "kill"])
def test_a_cancelled_job_is_made_up_for(tmp_path: Path, signal: list[str], places: int) -> None:
    """Its command dies with it, and another worker runs the command once more."""
    graph = chain(
        tmp_path / "graph",
        x="echo $SLURM_JOB_ID >> on; if [ $(wc -l < on) = 2 ]; then cat source > x;"
        " else sleep 600; fi",
    )
    process = graph.start(targets=["x"], engine=["slurm", places])
    on = graph.folder / "on"
    until(lambda: on.exists() and on.read_text().strip())
    subprocess.run(["scancel", *signal, on.read_text().strip()], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert (graph.folder / "x").read_text() == "0\n"
    first, second = on.read_text().split()
    assert first != second
