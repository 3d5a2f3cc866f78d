"""Where the command of a stage runs: on this machine, or wherever an engine brings this module.

The standard library and nothing else: a worker imports no DVC.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

LOOK_EVERY = 0.1  # seconds between looks at whether to stop


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
    """

    stage: str
    commands: tuple[str, ...]
    folder: str
    environment: dict[str, str]
    log: str
    stop: str


@runtime_checkable
class Process(Protocol):
    """What runs a job: a `subprocess.Popen`, or a fork of a warm interpreter."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal; `subprocess.TimeoutExpired` after `timeout`."""


def start(job: Job, command: str) -> Process:
    """Start a command of `job` in a session of its own; it is killed when this process dies.

    As DVC starts it: in the user's shell, without its start-up files.
    """
    shell = job.environment.get("SHELL") or os.environ.get("SHELL") or "/bin/sh"
    quiet = {"bash": ["--noprofile", "--norc"], "zsh": ["--no-rcs"]}.get(Path(shell).name, [])
    with Path(job.log).open("ab") as log:
        return subprocess.Popen(
            [*BOUND, shell, *quiet, "-c", command],
            cwd=job.folder,
            env=os.environ | job.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


Starter = Callable[[Job, str], Process]


def execute(job: Job, starter: Starter = start) -> int:
    """Run `job`, started by `starter`; its exit status, negative for a signal."""
    status = 0
    for command in job.commands:
        status = _watch(starter(job, command), Path(job.stop))
        if status:
            break
    return status


def _watch(process: Process, stop: Path) -> int:
    """Wait for `process`, and hand on to all its group what `stop` says meanwhile."""
    handed_on = ""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(LOOK_EVERY)
            return 128 - status if 128 < status <= 192 else status  # a shell's word for a signal
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (asked := stop.read_text()) and asked != handed_on:
                handed_on = asked
                os.killpg(process.pid, int(asked))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it ends, however it ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# Does the same in a process of its own, and becomes the command: after a fork in a process with
# threads no Python code is safe.
BOUND = (
    (sys.executable, "-I", "-S", "-c", "import ctypes, os, sys;"
     " ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])")
    if sys.platform == "linux"
    else ()
)  # fmt: skip
