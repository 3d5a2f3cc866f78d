"""Start Python commands in forks of a server that has imported their libraries (on Linux).

Each stage of a pipeline imports the same large libraries, which often takes longer than its work.

The fork server of `multiprocessing` does not fit, because its processes are parts of their parent's
program. They get its `sys.path` and import its code. They end without the cleanup of an interpreter
that ends. The time of a killed process is lost, and exit code 255 may also mean a lost server.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_parallel.fork_server import READY
from dvc_parallel.worker import Job, Process, start

SERVER = Path(__file__).with_name("fork_server.py")
SPECIAL = frozenset("'\"\\|&;<>()$`*?[]{}~#!\n")  # characters that a shell gives a meaning
REPLY = 32  # bytes, enough for a process ID or an exit status
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
VARIABLE = re.compile(r'"\$([A-Za-z_][A-Za-z0-9_]*)"')


@dataclass(frozen=True)
class Preload:
    """What the server imports.

    Attributes:
        modules: names of modules; a function named as `module:function` is called. The server
            skips modules that are not installed.
        fresh: top-level packages that each command imports anew, because their code may change
            while the server runs.
    """

    modules: tuple[str, ...]
    fresh: tuple[str, ...]


class ForkStarter:
    """Starts commands: Python scripts in forks as soon as the server is ready, others in a shell.

    If the server dies, its commands die too, and the next ones start without it.

    Args:
        preload: what the server imports.
        environment: variables of the server beyond our own; some libraries read them at import.
        after: how many scripts start before the server does. A server for a few scripts would cost
            more time than it saves.
    """

    def __init__(self, preload: Preload, environment: dict[str, str], after: int) -> None:
        self._preload, self._after = preload, after
        self._environment = os.environ | environment
        self._control, self._servers_end = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._server: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._lock = threading.Lock()

    def start(self, job: Job, command: str) -> Process:
        """Start a command of `job`."""
        call = script_call(job, command, self._environment)
        if call and self._is_ready():
            with contextlib.suppress(OSError):  # the server is dead, or could not fork
                return _Fork(self._control, call)
        return start(job, command)

    def close(self) -> None:
        """End the server and all its commands."""
        self._control.close()
        self._servers_end.close()
        if self._server:
            self._server.kill()  # it may still be importing
            self._server.wait()

    def _is_ready(self) -> bool:
        """Whether the server can fork; starts it after the first `after` scripts."""
        with self._lock:
            self._after -= 1
            if self._after < 0 and self._server is None:
                self._start_server()
            elif self._server and not self._ready and select.select([self._control], [], [], 0)[0]:
                self._ready = self._control.recv(len(READY)) == READY  # nothing if it has died
            return self._ready

    def _start_server(self) -> None:
        settings = {
            "preload": self._preload.modules,
            "fresh": self._preload.fresh,
            "path": [str(Path(folder).resolve()) for folder in sys.path],
        }
        number = str(self._servers_end.fileno())
        self._server = subprocess.Popen(
            [sys.executable, "-P", str(SERVER), number, json.dumps(settings)],
            pass_fds=[self._servers_end.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what libraries print while they are imported
            env={name: value for name, value in self._environment.items() if name != "PYTHONPATH"},
            start_new_session=True,
        )
        self._servers_end.close()


class _Fork:
    """A command in a fork of the server.

    Raises:
        OSError: the command does not run.
    """

    def __init__(self, control: socket.socket, order: dict[str, Any]) -> None:
        self._replies, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(control, [json.dumps(order).encode()], [theirs.fileno()])
            reply = self._replies.recv(REPLY)
            if not reply:
                raise ConnectionError("the server has not forked")
        except OSError:
            self._replies.close()
            raise
        self.pid = int(reply)

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal; `subprocess.TimeoutExpired` after `timeout`."""
        self._replies.settimeout(timeout)
        try:
            reply = self._replies.recv(REPLY)
        except TimeoutError:
            raise subprocess.TimeoutExpired("fork", timeout or 0) from None
        self._replies.close()
        return int(reply) if reply else -signal.SIGKILL  # no reply: it died with the server


def script_call(job: Job, command: str, environment: dict[str, str]) -> dict[str, Any] | None:
    """The order to the server for `command`, or None if a shell has to run it.

    A fork can run `python SCRIPT.py ARGUMENT...` with the Python of this process, after assignments
    such as `PYTHONPATH=src`. Other variables need the value that they have in `environment`, which
    is that of the server: Python and its libraries read many of them only once, at their start. An
    argument may be a variable in quotation marks, such as `"$DVC_STAGE"`.
    """
    words, assigned = command.split(), dict[str, str]()
    while words and (match := ASSIGNMENT.fullmatch(words[0])):
        assigned[match[1]] = match[2]
        words.pop(0)
    plain = [*assigned.values(), *(word for word in words if not VARIABLE.fullmatch(word))]
    if SPECIAL & {*"".join(plain)} or "\n" in command:
        return None
    if len(words) < 2 or words[0] != "python":
        return None
    if not words[1].endswith(".py") or any(
        environment.get(name) != value for name, value in assigned.items() if name != "PYTHONPATH"
    ):
        return None
    variables = os.environ | job.environment | assigned
    python = shutil.which("python", path=variables.get("PATH"))
    if python is None or Path(python).parent != Path(sys.executable).parent:
        return None
    script = [_expanded(word, os.environ | job.environment) for word in words[1:]]
    places = {"folder": job.folder, "log": job.log, "marker": job.marker}
    return {"script": script, "environment": variables, **places}


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    """The argument that a shell makes of `word`: a variable in quotation marks, or plain text."""
    match = VARIABLE.fullmatch(word)
    return variables.get(match[1], "") if match else word
