"""A server that imports large libraries once, and forks for each Python command.

Each fork becomes what `python SCRIPT ARGUMENT...` would have been, but the libraries are imported
already. `fork_starter.py` starts this program, which uses the standard library alone, so that its
forks hold no other code:

    python -P fork_server.py SOCKET SETTINGS

SOCKET is the number of an open socket. The server writes READY to it after its imports. Then each
message from it is one order: the command as JSON, with a socket for the replies. The server ends
when the other side closes SOCKET. SETTINGS are JSON:

- `preload`: modules to import; a function named as `module:function` is called;
- `fresh`: packages that are removed after that, so that each command imports its own copy;
- `path`: folders in which the server looks for all of them, and its commands do not.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

READY = b"ready"
LARGEST_ORDER = 1 << 24  # bytes, which is more than the system allows for arguments and environment
PR_SET_PDEATHSIG = 1
# The server ignores these. Its commands decide what to do about them, and it has to survive them.
FOR_THE_COMMANDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(control: socket.socket, settings: dict[str, list[str]]) -> None:
    """Import, and then serve. A fork returns at the end of its script, and the server never."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in FOR_THE_COMMANDS}
    _import(**settings)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes forks that have ended
    with contextlib.suppress(OSError):  # the other side has ended, which `_serve` notices
        control.send(READY)
    order = _serve(control)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    _become(**order)


def _import(preload: list[str], fresh: list[str], path: list[str]) -> None:
    """Import what the commands will need, and leave no trace of `path` and `fresh`."""
    before = [*sys.path]
    sys.path += [folder for folder in path if folder not in sys.path]
    for name in preload:
        with contextlib.suppress(ImportError):
            module_name, _, function = name.partition(":")
            module = importlib.import_module(module_name)
            if function:
                getattr(module, function)()
    sys.path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] in fresh]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # the collector of a fork does not look at these objects again


def _serve(control: socket.socket) -> dict[str, Any]:
    """Fork for each order; returns the order, in the process that is to carry it out."""
    server = os.getpid()
    while True:
        message, [*replies], _, _ = socket.recv_fds(control, LARGEST_ORDER, 1)
        if not message:
            os._exit(0)
        with contextlib.suppress(OSError):  # no memory; the closed socket tells the other side
            if _fork() == 0:
                control.close()
                order = json.loads(message)
                _watch(server, order.pop("marker"), socket.socket(fileno=replies[0]))
                return dict(order)
        os.close(replies[0])


def _fork() -> int:
    """`os.fork`, without the warning of Python 3.12 about threads that a library has started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _watch(server: int, marker: str, replies: socket.socket) -> None:
    """Fork the process of the command, in which this returns, and watch it.

    The replies are the command's process ID and, when it has ended, its exit status. Its processor
    time, in seconds, becomes a line of the file `marker`.
    """
    with contextlib.suppress(BaseException):
        _die_with(server)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        watcher = os.getpid()
        if (pid := _fork()) == 0:
            _die_with(watcher)
            replies.close()
            return
        replies.send(str(pid).encode())
        _, status, used = os.wait4(pid, 0)
        with contextlib.suppress(OSError), Path(marker).open("a") as file:
            print(used.ru_utime + used.ru_stime, file=file)
        replies.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which has just forked it, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)


def _become(script: list[str], folder: str, environment: dict[str, str], log: str) -> NoReturn:
    """Be what `python SCRIPT ARGUMENT...` would have been."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = Path(script[0]).absolute()
    sys.argv = script
    path = environment.get("PYTHONPATH")
    entries = path.split(os.pathsep) if path else []
    sys.path[:0] = [str(file.resolve().parent), *(str(Path(p).absolute()) for p in entries)]
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = str(file)
    exec(compile(file.read_bytes(), file, "exec"), module.__dict__)
    raise SystemExit(0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2]))
