"""The machine that a table is about, and the time that is left on it."""

import gc
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch

FAILED = "failed:"  # how a cell begins that ended with an exception
OUT_OF_TIME = "not run: out of time"
SHORTEST = 0.001  # seconds of a timer, which 0 would turn off
NONE = "–"  # noqa: RUF001 - for a cell that does not apply
T = TypeVar("T")


class Deadline:
    """A moment until which work may go on.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._start, self._seconds = time.monotonic(), seconds

    @property
    def left(self) -> float:
        """Seconds that are left; negative if none are."""
        return self._start + self._seconds - time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether the moment is over."""
        return self.left <= 0

    def share(self, fraction: float) -> "Deadline":
        """A deadline after `fraction` of the time that is left now."""
        return Deadline(self.left * fraction)


class TimeUpError(BaseException):
    """The time for a cell is over; no `except Exception` in a library stops it."""


@contextmanager
def limited(deadline: Deadline) -> Iterator[None]:
    """Raise a `TimeUpError` in the body at the deadline; only a program's main thread can."""

    def stop(*_: object) -> None:
        raise TimeUpError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(deadline.left, SHORTEST))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(cell: Callable[[], T], deadline: Deadline) -> T | str:
    """What `cell` returns, or one line about the exception that it ends with.

    Where one exception led to another, as when the capture of a graph is given up, the line has
    both. At the deadline the cell is stopped. After it, no cell begins.
    """
    if deadline.passed:
        return OUT_OF_TIME
    try:
        with limited(deadline):
            return cell()
    except TimeUpError:
        return OUT_OF_TIME
    except Exception as error:  # one failure must not cost the rest of the table
        first: BaseException = error
        while first.__context__ and not first.__suppress_context__:
            first = first.__context__
        if isinstance(first, TimeUpError):
            return OUT_OF_TIME
        text = f"{FAILED} {_in_short(error)}"
        return text if first is error else f"{text}, after {_in_short(first)}"


def _in_short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def description(device: torch.device, commit: str = "") -> dict[str, str]:
    """Name -> text, of all that one has to know about where and how a table was made.

    Args:
        commit: that of the checkout; if empty, git is asked.
    """
    return {
        "device": _device(device),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or NONE}, driver {_driver()}",
        "CPU": f"{_processor()}, {os.cpu_count()} cores, of which one thread is used",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "commit": commit or _commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": "python " + shlex.join(sys.argv),
    }


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float | None:
    """Most memory in GB that tensors have had since `reset_memory`; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 1e9


def reset_memory(device: torch.device) -> None:
    """Give back memory that no tensor uses, and count the peak anew."""
    gc.collect()  # a training and its graph refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return "CPU: a dry run, which says nothing about a GPU"
    found = torch.cuda.get_device_properties(device)
    size = f"{found.total_memory / 2**30:.0f} GiB"
    return f"{found.name}, {size}, compute capability {found.major}.{found.minor}"


def _driver() -> str:
    if not shutil.which("nvidia-smi"):
        return NONE
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    commit = _said("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit == NONE:
        return commit
    changed = _said("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return commit if changed == NONE else f"{commit}, with edits"


def _said(*command: str) -> str:
    """The first line that a command prints; a dash if it fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return NONE
    return (done.stdout.strip().splitlines() or [NONE])[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or NONE
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [NONE])[0]
