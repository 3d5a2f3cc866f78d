"""A command in a fork of the server is what a command of its own would be."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from parallel.test_schedule import until
from project import ROOT

from dvc_parallel.fork_starter import ForkStarter, Preload, script_call
from dvc_parallel.worker import Job, Starter, execute, start, stop_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a fork server"),
]

PRELOAD = Preload(
    modules=("toycircuits.core.fast_import:import_transformer_lens", "not_installed", "torch"),
    fresh=("toycircuits",),
)
SCRIPT = """
import atexit, json, os, signal, sys
atexit.register(print, "at exit")
print(__name__, __file__, sys.argv, os.getcwd())
print(sys.path)
shells_own = ("PWD", "OLDPWD", "SHLVL", "_")
print(sorted(item for item in os.environ.items() if item[0] not in shells_own))
print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)])
print(os.getsid(0) != os.getppid(), sorted(os.listdir("/proc/self/fd")))
print(sorted(name for name in sys.modules if name.startswith(("toycircuits", "dvc_parallel"))))
print(sys.stdin.read() == "", file=sys.stderr)
if sys.argv[1:] == ["error"]:
    raise ValueError("an error of the script")
if sys.argv[1:] == ["kill"]:
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
sys.exit(*map(eval, sys.argv[1:]))
"""


def ready_starter() -> ForkStarter:
    """A starter whose server is ready."""
    starter = ForkStarter(PRELOAD, {}, after=0)
    until(starter._is_ready)
    return starter


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkStarter]:
    """A starter whose server is ready, for all tests of this file."""
    starter = ready_starter()
    yield starter
    starter.close()


def make_job(folder: Path, command: str, **environment: str) -> Job:
    """A job with `python` of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {"PATH": path, "PYTHONPATH": "", "SHELL": "/bin/sh"} | environment
    log, stop, marker = (str(folder / n) for n in ("log", "stop", f"marker-{uuid4().hex}"))
    return Job("s", (command,), str(folder), variables, log, stop, marker)


def printed(folder: Path, command: str, starter: Starter) -> tuple[int, list[str]]:
    """Exit status, and lines of the log."""
    (folder / "log").unlink(missing_ok=True)
    status = execute(make_job(folder, command), starter)
    return status, sorted((folder / "log").read_text().splitlines())


@pytest.mark.parametrize(
    ("argument", "status"),
    [("", 0), ("3", 3), ("None", 0), ("text", 1), ("error", 1), ("kill", -9)],
)
@pytest.mark.parametrize("prefix", ["", "PYTHONPATH=src:/nowhere "])
def test_forks_print_and_end_as_others_do(
    tmp_path: Path, forks: ForkStarter, prefix: str, argument: str, status: int
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/script.py").write_text(SCRIPT)
    command = f"{prefix}python sub/script.py {argument}".strip()
    if argument == "text":  # sys.exit prints it
        (tmp_path / "sub/script.py").write_text(SCRIPT.replace("*map(eval, sys.argv[1:])", "'12'"))
    shell, fork = (printed(tmp_path, command, how) for how in (start, forks.start))
    assert shell[0] == fork[0] == status

    def comparable(lines: list[str]) -> list[str]:
        """Without the frames of a traceback, and without a shell's word on a killed command."""
        return [line for line in lines if not line.startswith("  ") and line != "Killed"]

    assert comparable(fork[1]) == comparable(shell[1])
    assert "True" in fork[1]
    assert "[]" in fork[1], "code of the server's own tree in a command"
    assert ("'/nowhere'" in str(fork[1])) == bool(prefix)


def test_it_is_a_fork(tmp_path: Path, forks: ForkStarter) -> None:
    (tmp_path / "script.py").write_text("import sys; print('transformer_lens' in sys.modules)")
    for prefix in ("", "PYTHONPATH=src "):
        assert printed(tmp_path, f"{prefix}python script.py", forks.start) == (0, ["True"])
        assert printed(tmp_path, f"{prefix}python script.py", start) == (0, ["False"])


def test_a_fork_imports_the_code_that_is_there_when_it_starts(
    tmp_path: Path, forks: ForkStarter
) -> None:
    package = tmp_path / "src/toycircuits"
    package.mkdir(parents=True)
    (tmp_path / "script.py").write_text("import toycircuits; print(toycircuits.number)")
    for number in ("1", "2", "30"):
        (package / "__init__.py").write_text(f"number = {number}\n")
        assert printed(tmp_path, "PYTHONPATH=src python script.py", forks.start) == (0, [number])


@pytest.mark.parametrize(
    "command",
    [
        *("python -c pass", "python script.py > x", "python3 script.py", "true", "A=1", ""),
        *("A-B=1 python script.py", "A=$B python script.py", "A='1' python script.py"),
        *('python script.py "$A b"', "python script.py $A", 'python script.py "${A}"'),
        *('A="$B" python script.py', 'python script.py "$A"\ntrue', 'python script.py x"$A"'),
        "OMP_NUM_THREADS=3 python script.py",  # read when a library is imported
        "PATH=/nowhere python script.py",
    ],
)
def test_what_is_more_than_a_script_goes_to_the_shell(tmp_path: Path, command: str) -> None:
    assert script_call(make_job(tmp_path, command), command, {"OMP_NUM_THREADS": "2"}) is None


def test_assignments_before_a_script_are_its_environment(tmp_path: Path) -> None:
    job = make_job(tmp_path, "")
    call = script_call(job, "python script.py a=b", {})
    assert call
    assert call["script"] == ["script.py", "a=b"]
    assert call["environment"] == os.environ | job.environment
    call = script_call(job, "PYTHONPATH=src:=lib A= python script.py", {"A": ""})
    assert call
    assert call["script"] == ["script.py"]
    assert call["environment"] == os.environ | job.environment | {"PYTHONPATH": "src:=lib", "A": ""}


def test_a_quoted_variable_is_one_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its value would mean something to a shell."""
    monkeypatch.setenv("STAGE", "train@a b; $(touch planted) 'x")
    command = 'STAGE=y python script.py "$STAGE" "$ABSENT"'
    monkeypatch.delenv("ABSENT", raising=False)
    call = script_call(make_job(tmp_path, command), command, {"STAGE": "y"})
    assert call
    assert call["script"] == ["script.py", os.environ["STAGE"], ""]
    shell = ["sh", "-c", command.replace("python script.py", "printf '%s|'")]
    printed = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.split("|")[:2] == call["script"][1:]
    assert [*tmp_path.iterdir()] == []


def test_the_time_of_a_command_that_is_killed_counts(tmp_path: Path, forks: ForkStarter) -> None:
    (tmp_path / "script.py").write_text(
        "import os, subprocess, sys, time\n"
        "if sys.argv[1:] == []:\n"
        "    subprocess.run([sys.executable, __file__, 'child'])\n"
        "    os.kill(os.getpid(), 9)\n"
        "while time.process_time() < 0.5: pass\n"
    )
    job = make_job(tmp_path, "python script.py")
    assert execute(job, forks.start) == -signal.SIGKILL
    assert 0.5 <= json.loads(Path(job.marker).read_text())["processor_seconds"] < 5


def test_the_first_scripts_start_without_the_server(tmp_path: Path) -> None:
    starter = ForkStarter(PRELOAD, {}, after=2)
    (tmp_path / "script.py").touch()
    commands = ["python script.py", "true", "python script.py", "true", "python script.py"]
    servers = []
    for command in commands:
        job = make_job(tmp_path, command)
        assert execute(job, starter.start) == 0
        servers.append(starter._server is not None)
    starter.close()
    assert servers == [False, False, False, False, True]


def test_the_stop_file_reaches_the_group_of_a_fork(tmp_path: Path, forks: ForkStarter) -> None:
    (tmp_path / "script.py").write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(15, lambda *_: sys.exit(143))\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open('on', 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    job = make_job(tmp_path, "python script.py")
    process = forks.start(job, job.commands[0])
    until(lambda: (tmp_path / "on").exists() and (tmp_path / "on").read_text())
    Path(stop_file(job.stop, signal.SIGTERM)).touch()
    assert execute(job, lambda *_: process) == -signal.SIGTERM
    assert gone(int((tmp_path / "on").read_text()))


def gone(pid: int) -> bool:
    """Whether a process ends, within the time that `until` allows."""
    stat = Path(f"/proc/{pid}/stat")
    until(lambda: not stat.exists() or " Z " in stat.read_text())
    return True


ENDLESS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def process_id(job: Job) -> int:
    """What ENDLESS has printed."""
    log = Path(job.log)
    until(lambda: log.exists() and log.read_text())
    return int(log.read_text())


def test_a_server_that_dies_takes_its_commands_with_it(tmp_path: Path) -> None:
    starter = ready_starter()
    (tmp_path / "script.py").write_text(ENDLESS)
    job = make_job(tmp_path, "python script.py")
    process = starter.start(job, job.commands[0])
    assert not isinstance(process, subprocess.Popen)
    assert process.pid == process_id(job)
    assert starter._server
    starter._server.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert gone(process.pid)
    (tmp_path / "script.py").write_text("print('off')")
    assert printed(tmp_path, "python script.py", starter.start) == (0, ["off"])
    starter.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_server_does_not_reach_its_commands(
    tmp_path: Path, forks: ForkStarter, number: signal.Signals
) -> None:
    """Whoever stops the commands lets them save their state first."""
    assert forks._server
    os.kill(forks._server.pid, number)
    (tmp_path / "script.py").write_text("import sys; print('torch' in sys.modules)")
    assert printed(tmp_path, "python script.py", forks.start) == (0, ["True"])


DRIVER = """
import time
from parallel import test_fork_starter as ours
from pathlib import Path
starter = ours.ready_starter()
job = ours.make_job(Path.cwd(), "python script.py")
starter.start(job, job.commands[0])
time.sleep(600)
"""


def test_a_starter_that_is_killed_takes_server_and_commands_with_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ENDLESS + "\n")
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "tests"))
    environment = os.environ | {"PYTHONPATH": path}
    starter = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment)
    command = process_id(make_job(tmp_path, ""))
    [server] = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
    starter.kill()
    starter.wait()
    assert gone(command)
    assert gone(int(server))
