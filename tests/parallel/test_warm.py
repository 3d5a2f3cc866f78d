"""A command in a fork of the warm server is what a command of its own would be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parallel.test_schedule import until
from project import ROOT

from dvc_parallel.warm import Warm, _is_plain_python
from dvc_parallel.worker import Job, Starter, execute, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks are warm on Linux alone"),
]

SCRIPT = """
import atexit, os, sys
atexit.register(print, "at exit")
print(__name__, __file__, sys.argv, sys.path[0], os.getcwd(), os.environ["OWN"])
print(sorted(name for name in sys.modules if name.startswith("toycircuits")))
print(sys.stdin.read() == "", file=sys.stderr)
if sys.argv[1:] == ["error"]:
    raise ValueError("an error of the script")
if sys.argv[1:] == ["kill"]:
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
sys.exit(*map(eval, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[Starter]:
    """What starts commands in forks, once it is ready to."""
    os.environ.setdefault("PYTHONPATH", str(ROOT / "src"))
    server = Warm({}, after=0)
    job = make_job(Path("/"), "true")
    server.start(job, "python nothing.py").wait()
    until(lambda: server._ready)
    yield server.start
    server.close()


def make_job(folder: Path, command: str) -> Job:
    """A job with `python` of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    log = str(folder / "log") if folder != Path("/") else os.devnull
    environment = {"PATH": path, "OWN": "value", "PYTHONPATH": ""}
    stop, claim = str(folder / "stop"), str(folder / f"claim{time.time_ns()}")
    return Job("s", (command,), str(folder), environment, log, stop, claim)


def printed(folder: Path, command: str, starter: Starter) -> tuple[int, list[str]]:
    """Exit status, and lines of the log."""
    (folder / "log").unlink(missing_ok=True)
    status = execute(make_job(folder, command), starter)
    return status, sorted((folder / "log").read_text().splitlines())


@pytest.mark.parametrize(
    ("argument", "status"),
    [("", 0), ("3", 3), ("None", 0), ("text", 1), ("error", 1), ("kill", -9)],
)
def test_forks_print_and_end_as_others_do(
    tmp_path: Path, warm: Starter, argument: str, status: int
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/script.py").write_text(SCRIPT)
    command = f"python sub/script.py {argument}".strip()
    if argument == "text":  # sys.exit prints it
        (tmp_path / "sub/script.py").write_text(SCRIPT.replace("*map(eval, sys.argv[1:])", "'12'"))
    cold, hot = (printed(tmp_path, command, how) for how in (start, warm))
    assert cold[0] == hot[0] == status

    def own(lines: list[str]) -> list[str]:
        """Without what a fork's traceback has more, and a shell's word that its command died."""
        return [line for line in lines if not line.startswith("  ") and line != "Killed"]

    assert own(hot[1]) == own(cold[1])
    assert "True" in hot[1]
    assert "[]" in hot[1], "code of the server's own tree in a command"


def test_it_is_a_fork(tmp_path: Path, warm: Starter) -> None:
    (tmp_path / "script.py").write_text("import sys; print('torch' in sys.modules)")
    assert printed(tmp_path, "python script.py", warm) == (0, ["True"])
    assert printed(tmp_path, "python script.py", start) == (0, ["False"])


@pytest.mark.parametrize(
    "command",
    ["python -c pass", "python script.py > x", "A=1 python script.py", "python3 script.py", "true"],
)
def test_what_is_more_than_a_script_goes_to_the_shell(tmp_path: Path, command: str) -> None:
    assert not _is_plain_python(make_job(tmp_path, command), command)
    command = "python script.py argument"
    assert _is_plain_python(make_job(tmp_path, command), command)


def test_the_stop_file_reaches_the_group_of_a_fork(tmp_path: Path, warm: Starter) -> None:
    (tmp_path / "script.py").write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(15, lambda *_: sys.exit(143))\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open('on', 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    job = make_job(tmp_path, "python script.py")
    process = warm(job, job.commands[0])
    until(lambda: (tmp_path / "on").exists() and (tmp_path / "on").read_text())
    (tmp_path / "stop").write_text("15")
    assert execute(job, lambda *_: process) == -signal.SIGTERM
    child = Path("/proc") / (tmp_path / "on").read_text() / "stat"
    until(lambda: not child.exists() or " Z " in child.read_text())


def test_a_job_is_run_once(tmp_path: Path) -> None:
    """A cluster may give it to another worker by itself; then it counts as lost."""
    job = make_job(tmp_path, "echo once >> out")
    assert execute(job) == 0
    assert execute(job) == -signal.SIGKILL
    assert (tmp_path / "out").read_text() == "once\n"


def test_an_error_in_watching_kills_what_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, "echo $$ > pid; sleep 600")
    (tmp_path / "stop").write_text("no number")
    with pytest.raises(ValueError, match="no number"):
        execute(job)
    assert not (tmp_path / "pid").exists() or gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    until(lambda: not stat.exists() or " Z " in stat.read_text())
    return True


@pytest.mark.parametrize("code", [129, 137, 143])
def test_a_shell_that_tells_of_a_signal_is_understood(tmp_path: Path, code: int) -> None:
    assert execute(make_job(tmp_path, f"exit {code}")) == 128 - code
    assert execute(make_job(tmp_path, "exit 150")) == 150


def test_a_server_that_dies_takes_its_commands_with_it(tmp_path: Path) -> None:
    os.environ.setdefault("PYTHONPATH", str(ROOT / "src"))
    server = Warm({}, after=0)
    (tmp_path / "script.py").write_text("import time; print('on', flush=True); time.sleep(600)")
    job = make_job(tmp_path, "python script.py")
    server.start(make_job(Path("/"), "true"), "python nothing.py").wait()
    until(lambda: server._ready)
    process = server.start(job, job.commands[0])
    assert not isinstance(process, subprocess.Popen)
    until(lambda: "on" in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""))
    assert server._server
    server._server.kill()
    assert process.wait(10) == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{process.pid}").exists())
    (tmp_path / "script.py").write_text("print('off')")
    assert printed(tmp_path, "python script.py", server.start) == (0, ["off"])
    server.close()
