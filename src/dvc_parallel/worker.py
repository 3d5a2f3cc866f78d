"""Where the command of a stage runs: on this machine, or wherever an engine brings this module.

The standard library and nothing else: a worker imports no DVC.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

LOOK_EVERY = 0.1  # seconds between looks at whether to stop
ANSWER_WITHIN = 20.0  # seconds for nvidia-smi, which hangs on some broken GPUs


@dataclass(frozen=True)
class Job:
    """The commands of a stage, and all that a worker needs to run them.

    Attributes:
        stage: its name.
        commands: for a shell, as in dvc.yaml; one after the other, until one fails.
        folder: where it runs.
        environment: variables on top of those of the worker.
        log: file that takes what it prints, after what is there.
        stop: file that holds the number of a signal as soon as the command is to stop.
        claim: file that does not exist before the job runs: a cluster may try to run it again.
            Whoever waits for a command adds a line to it, the seconds of processor time that it
            took; in the end it says where the job ran, and how long.
    """

    stage: str
    commands: tuple[str, ...]
    folder: str
    environment: dict[str, str]
    log: str
    stop: str
    claim: str


@runtime_checkable
class Process(Protocol):
    """What runs a job: a `subprocess.Popen`, or a fork of a warm interpreter."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal; `subprocess.TimeoutExpired` after `timeout`."""


def start(job: Job, command: str) -> Process:
    """Start a command of `job` in a session of its own; all of it is killed when we die.

    As DVC starts it: in the user's shell, without its start-up files.
    """
    shell = job.environment.get("SHELL") or os.environ.get("SHELL") or "/bin/sh"
    quiet = {"bash": ["--noprofile", "--norc"], "zsh": ["--no-rcs"]}.get(Path(shell).name, [])
    supervisor = [sys.executable, "-I", "-S", "-c", SUPERVISOR, job.claim]
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


# The kernel tells a process that its parent has died, but not that process's children: a shell's
# command would live on. So this one stays, does nothing else, and then kills its whole group.
SUPERVISOR = """
import ctypes, os, resource, signal, subprocess, sys
parent = os.getppid()
signal.signal(signal.SIGUSR1, lambda *_: os.killpg(0, signal.SIGKILL))
ctypes.CDLL(None).prctl(1, signal.SIGUSR1)  # PR_SET_PDEATHSIG
if os.getppid() != parent:
    sys.exit(137)
passed_on = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]  # the group gets them, too
before = [signal.signal(number, signal.SIG_IGN) for number in passed_on]
child = subprocess.Popen(
    sys.argv[2:], preexec_fn=lambda: [signal.signal(*pair) for pair in zip(passed_on, before)]
)
status = child.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
try:
    with open(sys.argv[1], "a") as claim:
        print(used.ru_utime + used.ru_stime, file=claim)
except OSError:
    pass
sys.exit(128 - status if status < 0 else status)
"""
# What a shell says of a command that one of these has ended; other numbers are the command's own.
TOLD = {128 + number: -number for number in (1, 2, 9, 15)}

Starter = Callable[[Job, str], Process]


def execute(job: Job, starter: Starter = start) -> int:
    """Run `job`, started by `starter`; its exit status, negative for a signal.

    A job that has been claimed is not run: whoever did so is lost, and left things half done.
    """
    try:
        Path(job.claim).touch(exist_ok=False)
    except FileExistsError:
        return -signal.SIGKILL
    status, started = 0, time.monotonic()
    for command in job.commands:
        status = _watch(starter(job, command), Path(job.stop))
        if status:
            break
    _tell(Path(job.claim), time.monotonic() - started)
    return status


def _tell(claim: Path, seconds: float) -> None:
    """Say in `claim` where a job ran, and how long.

    The job has ended, and stays what it is: done, though no word of its time can be kept.
    """
    with contextlib.suppress(Exception):
        used: list[float] = []
        with contextlib.suppress(OSError, ValueError):  # of a full disk
            used = [float(line) for line in claim.read_text().splitlines()]
        told = {"seconds": seconds, "processor_seconds": sum(used) or None}
        claim.write_text(json.dumps(told | machine()))


@cache
def machine() -> dict[str, Any]:
    """This machine, and with what it computes."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    version = "of unknown version"
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version("torch")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": named[0] if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "torch": version,
    }


def _gpus() -> list[str]:
    """Names of the GPUs; none where NVIDIA's tool is missing, or fails: it would print why."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=ANSWER_WITHIN
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return told.stdout.splitlines()


def _watch(process: Process, stop: Path) -> int:
    """Wait for `process`, and hand on to all its group what `stop` says meanwhile."""
    handed_on = ""
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(LOOK_EVERY)
                return TOLD.get(status, status)
            with contextlib.suppress(OSError):  # not there, or not to be read just now
                if (asked := stop.read_text()) and asked != handed_on:
                    os.killpg(process.pid, int(asked))
                    handed_on = asked
    except BaseException:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it ends, however it ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
