"""Run a shell command, and kill all its processes if the worker that started it dies.

The kernel can tell a process that its parent has died, but it does not tell the process's children,
so a command would outlive the shell that it runs in. This program stands between the worker and the
shell. It uses the standard library alone, because a worker starts it for every command:

    python -I -S supervisor.py MARKER SHELL ARGUMENT...

At the end it adds a line to the file MARKER: the processor time of the command, in seconds.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
# The whole process group gets these signals. The supervisor leaves them to the command.
FOR_THE_COMMAND = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def supervise(marker: str, command: Sequence[str]) -> int:
    """Run `command` and return its exit code, which is 128 + N after signal N, as in a shell."""
    parent = os.getppid()
    signal.signal(signal.SIGUSR1, lambda *_: os.killpg(0, signal.SIGKILL))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != parent:  # the worker died before the kernel knew what to do then
        return 128 + signal.SIGKILL
    handlers = [(number, signal.signal(number, signal.SIG_IGN)) for number in FOR_THE_COMMAND]

    def restore_handlers() -> None:
        for number, handler in handlers:
            signal.signal(number, handler)

    status = subprocess.Popen(command, preexec_fn=restore_handlers).wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(OSError), open(marker, "a") as file:  # noqa: PTH123 (fast start)
        print(used.ru_utime + used.ru_stime, file=file)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1], sys.argv[2:]))
