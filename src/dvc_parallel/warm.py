"""Python commands without the seconds that it takes to import torch: forks of a warm interpreter.

Each stage imports the same large libraries, which takes longer than the work of many a stage. A
server process imports them once. For each command it forks: the child is the interpreter that
`python` would have started, but for what is imported already. Nothing of this project is, so that
every command runs the code that is there when it starts.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from dvc_parallel.worker import Job, Process, die_with_parent, start

# What stages import, and nothing that starts threads or looks at a device.
PRELOADED = (
    *("torch", "pandas", "plotly.express", "plotly.io", "typer", "pydantic", "jaxtyping"),
    *("filelock", "safetensors.torch", "tqdm", "ruamel.yaml", "scipy"),
)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Fork:
    """A command in a fork of the server."""

    def __init__(self) -> None:
        self.pid = 0
        self.status: int | None = None
        self.started, self.ended = threading.Event(), threading.Event()

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal."""
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        assert self.status is not None
        return self.status


class Warm:
    """Starts commands, plain Python ones in forks of a server, as soon as that has imported all.

    A server that dies takes its commands with it, as a machine would; others then start cold.

    Args:
        environment: of the server, on top of our own: some libraries read it while they load.
        after: how many commands start cold first; a server for few would cost more than it saves.
    """

    def __init__(self, environment: dict[str, str], after: int) -> None:
        self._environment, self._after = environment, after
        self._server: subprocess.Popen[str] | None = None
        self._ready = False
        self._forks: dict[int, _Fork] = {}
        self._lock = threading.Lock()

    def _import(self) -> None:
        """Start the server, which is ready some seconds later."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | self._environment,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, job: Job, command: str) -> Process:
        """Start a command of `job`."""
        if not _is_plain_python(job, command):
            return start(job, command)
        places = {"folder": job.folder, "log": job.log, "claim": job.claim}
        order = {"script": command.split()[1:], **places}
        fork = _Fork()
        with self._lock:
            self._after -= 1
            if self._after < 0 and self._server is None:
                self._import()
            if not self._ready:
                return start(job, command)
            number = len(self._forks)
            self._forks[number] = fork
            self._send(order | {"number": number, "environment": job.environment})
        fork.started.wait()
        return fork if fork.pid else start(job, command)

    def close(self) -> None:
        """End the server."""
        if self._server:  # no command runs any more, and it may be importing still
            self._server.kill()
            self._server.communicate()

    def _send(self, order: dict[str, Any]) -> None:
        assert self._server
        assert self._server.stdin
        with contextlib.suppress(OSError):  # it is dead, which `_listen` sees, too
            print(json.dumps(order), file=self._server.stdin, flush=True)

    def _listen(self) -> None:
        assert self._server
        assert self._server.stdout
        for line in self._server.stdout:
            said = json.loads(line)
            self._ready = True
            if "pid" in said:
                fork = self._forks[said["number"]]
                fork.pid = said["pid"]
                fork.started.set()
            elif "status" in said:
                fork = self._forks[said["number"]]
                fork.status = said["status"]
                fork.ended.set()
        with self._lock:  # the server is gone, and with it its children
            self._ready = False
            for fork in self._forks.values():
                fork.status = -signal.SIGKILL if fork.status is None else fork.status
                fork.started.set()
                fork.ended.set()


def _is_plain_python(job: Job, command: str) -> bool:
    """Whether `command` is a plain call of a Python script by this very Python."""
    words = command.split()
    if set(command) & set("'\"\\|&;<>()$`*?[]{}~#!\n=") or len(words) < 2 or words[0] != "python":
        return False
    found = shutil.which("python", path=job.environment.get("PATH", os.environ.get("PATH")))
    here = found is not None and Path(found).parent == Path(sys.executable).parent
    return here and words[1].endswith(".py")


def serve() -> None:
    """Import, then fork for each order on standard input, and say on standard output what ends."""
    die_with_parent()
    os.close(os.pidfd_open(os.getpid()))  # where this does not work, all start cold
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # it ends with the reproduction, not before it
    orders, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever an import prints must not be taken for an answer
    from toycircuits.core.fast_import import import_transformer_lens

    import_transformer_lens()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children need not look at all this again

    def answer(**values: object) -> None:
        os.write(answers, json.dumps(values).encode() + b"\n")

    answer(ready=True)
    selector = selectors.DefaultSelector()
    selector.register(orders, selectors.EVENT_READ)
    unread = b""
    while True:
        for key, _ in selector.select():
            if key.data:
                number, pid, claim = key.data
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status, used = os.wait4(pid, 0)
                with contextlib.suppress(OSError), Path(claim).open("a") as file:
                    print(used.ru_utime + used.ru_stime, file=file)
                answer(number=number, status=os.waitstatus_to_exitcode(status))
                continue
            if not (new := os.read(orders, 65536)):
                return
            *lines, unread = (unread + new).split(b"\n")
            for order in map(json.loads, lines):
                try:
                    pid = os.fork()
                except OSError:  # no memory for it now
                    answer(number=order["number"], pid=0)
                    continue
                if not pid:
                    os.close(orders)
                    os.close(answers)
                    _become(order)
                answer(number=order["number"], pid=pid)
                exits = os.pidfd_open(pid)
                data = (order["number"], pid, order["claim"])
                selector.register(exits, selectors.EVENT_READ, data)


def _become(order: dict[str, Any]) -> NoReturn:
    """Be what `python script arguments` would have been."""
    os.setsid()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "toycircuits"]:
        del sys.modules[name]  # the script brings its own
    script, *arguments = order["script"]
    sys.argv = [script, *arguments]
    path = Path(script).resolve()
    sys.path[0] = str(path.parent)
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__ = str(path)
    exec(compile(path.read_bytes(), path, "exec"), main.__dict__)
    raise SystemExit(0)


if __name__ == "__main__":
    serve()
