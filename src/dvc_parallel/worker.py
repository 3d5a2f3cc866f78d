"""Run the commands of one stage, on this machine or on any machine to which an engine sends them.

A worker has no DVC, so this module uses the standard library alone.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dvc_parallel.files import State, state_of, was_written_to

READ = "DVC_PARALLEL_READ"  # this variable gives a command the path of its `read_file`
LOOK_EVERY = 0.1  # seconds between looks at the files of a job
ANSWER_WITHIN = 20.0  # seconds for nvidia-smi, which hangs on some broken GPUs
SUPERVISOR = Path(__file__).with_name("supervisor.py")
# A shell exits with these codes if one of these signals ended its command. Any other exit code
# above 128 is taken for a code that the command chose.
SIGNALS_BY_CODE = {
    128 + number: -number
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
}


_asked = set[tuple[str, int]]()  # what `ask_to_stop` was called with in this process


@dataclass(frozen=True)
class Job:
    """The commands of a stage, and what a worker needs to run them.

    Attributes:
        stage: name of the stage.
        commands: shell commands as in dvc.yaml. They run one after the other until one fails.
        folder: working folder of the commands.
        environment: variables that are added to those of the worker.
        log: file to which the output of the commands is appended.
        stop: start of the names of the files that appear when the commands are to stop. Each name
            ends with the number of a signal. The files are empty, because a disk may be full.
        marker: file that does not exist before the job runs. It shows that a worker has taken the
            job, because a cluster may give one job to a second worker. While the job runs, each
            command adds a line with its processor time in seconds. At the end the file says where
            and how long the job ran.
        inputs: path of each input -> its `files.state_of` before the executor took its hash.
        root: the folder of the project.
    """

    stage: str
    commands: tuple[str, ...]
    folder: str
    environment: dict[str, str]
    log: str
    stop: str
    marker: str
    inputs: Mapping[str, State] = field(default_factory=dict)
    root: str = "/"

    def edited(self, inputs: Iterable[str]) -> list[str]:
        """Those of `inputs` that were written to since the executor took their hash."""
        return [p for p in inputs if was_written_to(self.inputs[p], state_of(p, self.root))]

    def still_read(self) -> list[str] | None:
        """Inputs that the command goes on reading; None if it has not created its `read_file`."""
        try:
            listed = os.fsdecode(Path(read_file(self.marker)).read_bytes()).splitlines()
        except FileNotFoundError:
            return None
        full = [Path(self.folder, path) for path in listed]
        return [path for path in self.inputs if any(_overlap(Path(path), p) for p in full)]


class InputsEditedError(Exception):
    """Somebody edited inputs before the command had read them.

    Nobody knows what it has read, so its results are of no use.

    Attributes:
        paths: the inputs.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        self.paths = paths


@runtime_checkable
class Process(Protocol):
    """A running command: a `subprocess.Popen`, or a fork of an interpreter."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal; `subprocess.TimeoutExpired` after `timeout`."""


Starter = Callable[[Job, str], Process]


def start(job: Job, command: str) -> Process:
    """Start a command of `job` as DVC does: in the user's shell, without its start-up files.

    The command gets a session of its own. On Linux, all its processes die with this one.
    """
    shell = job.environment.get("SHELL") or os.environ.get("SHELL") or "/bin/sh"
    quiet = {"bash": ["--noprofile", "--norc"], "zsh": ["--no-rcs"]}.get(Path(shell).name, [])
    supervisor = [sys.executable, "-I", "-S", str(SUPERVISOR), job.marker]
    supervisor = supervisor if sys.platform == "linux" else []
    with Path(job.log).open("ab") as log:
        return subprocess.Popen(
            [*supervisor, shell, *quiet, "-c", command],
            cwd=job.folder,
            env=os.environ | job.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def execute(job: Job, starter: Starter = start) -> int:
    """Run `job`, whose commands `starter` starts; return its exit status, negative for a signal.

    A job that has a marker already is not run, and counts as killed: the worker that took it first
    is lost and has left its results half done.

    Raises:
        InputsEditedError: its results may not be those of the inputs that the executor knows. A
            command that fails may do so because of the edit, so this counts for it, too.
    """
    try:
        Path(job.marker).touch(exist_ok=False)
    except FileExistsError:
        return -signal.SIGKILL
    status, started = 0, time.monotonic()
    try:
        for command in job.commands:
            Path(read_file(job.marker)).unlink(missing_ok=True)  # it was about the command before
            status, unread = _watch(starter(job, command), job)
            if status >= 0 and (edited := job.edited(unread)):
                raise InputsEditedError(edited)
            if status:
                break
    finally:
        Path(read_file(job.marker)).unlink(missing_ok=True)
        _complete(Path(job.marker), time.monotonic() - started)
    return status


def _complete(marker: Path, seconds: float) -> None:
    """Write to `marker` where the job ran and how long.

    Errors are ignored: the outcome of the job does not depend on what is known of its time.
    """
    with contextlib.suppress(Exception):
        times: list[float] = []
        with contextlib.suppress(OSError, ValueError):  # a full disk may leave half a line
            times = [float(line) for line in marker.read_text().splitlines()]
        usage = {"seconds": seconds, "processor_seconds": sum(times) or None}
        marker.write_text(json.dumps(usage | machine()))


@cache
def machine() -> dict[str, Any]:
    """The hardware and software of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    version = "of unknown version"
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version("torch")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "torch": version,
    }


def _gpus() -> list[str]:
    """Names of the GPUs, or nothing if nvidia-smi is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=ANSWER_WITHIN
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return listed.stdout.splitlines()


def _watch(process: Process, job: Job) -> tuple[int, Sequence[str]]:
    """Wait for `process`, and send its process group each signal that a stop file names.

    Returns:
        The exit status, and the inputs that the process read until its end.

    Raises:
        InputsEditedError: inputs were edited before the process had read them. It is killed.
    """
    sent = set[int]()
    unread, has_read = list(job.inputs), False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(LOOK_EVERY)
                return SIGNALS_BY_CODE.get(status, status), unread
            for number in (signal.SIGTERM, signal.SIGKILL):
                if number not in sent and _is_asked_to_stop(job.stop, number):
                    sent.add(number)
                    with contextlib.suppress(OSError):  # it has just ended
                        os.killpg(process.pid, number)
            if not has_read and (remaining := job.still_read()) is not None:
                if edited := job.edited(unread):
                    raise InputsEditedError(edited)
                unread, has_read = remaining, True
    except BaseException:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def ask_to_stop(stop: str, number: int) -> None:
    """Ask the commands of all jobs with this `stop` to end by the signal `number`.

    Workers in this process see it even if no file can be created, because the disk is full, say.
    """
    _asked.add((stop, int(number)))
    with contextlib.suppress(OSError):
        file = Path(stop_file(stop, number))
        file.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed the folder
        file.touch()


def _is_asked_to_stop(stop: str, number: int) -> bool:
    return (stop, int(number)) in _asked or Path(stop_file(stop, number)).exists()


def stop_file(stop: str, number: int) -> str:
    """The file that asks the commands of jobs with this `stop` to end by the signal `number`."""
    return f"{stop}.{int(number)}"


def read_file(marker: str) -> str:
    """The file that tells that the command of the job with this `marker` has read its inputs.

    Later edits of the inputs do not matter then. A command that does not create the file is taken
    to read until its end. The file must appear complete, so a command writes it under another name
    and renames it. It may hold paths, one in a line, of inputs that the command goes on reading.
    """
    return f"{marker}.read"


def _overlap(path: Path, other: Path) -> bool:
    """Whether one of these is in the other, or is the other."""
    return path.is_relative_to(other) or other.is_relative_to(path)
