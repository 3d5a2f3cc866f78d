"""Variables that let nothing run are named before anything does, and a missing HOME is mended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from project import ROOT, environment_of

from dvc_parallel.engines import THREADS
from toycircuits.commands import environment
from toycircuits.core.config import InputError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOYCIRCUITS_DEVICE", *THREADS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("TOYCIRCUITS_DEVICE", "gpu", "auto, cpu, cuda, cuda:0, ..."),
        ("TOYCIRCUITS_DEVICE", "CPU", "auto, cpu, cuda, cuda:0, ..."),
        ("TOYCIRCUITS_DEVICE", " cpu", "auto, cpu, cuda, cuda:0, ..."),
        ("TOYCIRCUITS_DEVICE", "meta", "auto, cpu, cuda, cuda:0, ..."),
        ("TOYCIRCUITS_DEVICE", "cuda:x", "auto, cpu, cuda, cuda:0, ..."),
        ("TOYCIRCUITS_DEVICE", "privateuseone", "auto, cpu, cuda, cuda:0, ..."),
        *[
            (name, value, "a number of threads, from 1")
            for name, value in zip(
                [*THREADS, *THREADS],
                ["abc", "0", "", "-1", "1.5", "2,x", "all", " "],
                strict=True,
            )
        ],
    ],
)
def test_a_variable_that_nothing_can_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        environment.check_environment(ROOT)
    assert str(error.value) == f"{name}: found {value!r}; allowed: {allowed}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("TOYCIRCUITS_DEVICE", value) for value in ("", "auto", "cpu")],
        *[("OMP_NUM_THREADS", value) for value in ("1", "16", "4,2", " 2 ")],
        ("MKL_NUM_THREADS", "3"),
    ],
)
def test_others_pass(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    environment.check_environment(ROOT)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_has_to_be_there_where_commands_run(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TOYCIRCUITS_DEVICE", name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=f"found '{name}'; torch finds 0 CUDA devices here"):
        environment.check_environment(ROOT)
    environment.check_environment(ROOT, is_local=False)  # a queue runs them on other machines
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    environment.check_environment(ROOT)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_is_of_no_use_for_portable_results(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TOYCIRCUITS_DEVICE", name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    environment.check_environment(ROOT)
    for is_local in (True, False):
        with pytest.raises(InputError) as error:
            environment.check_environment(ROOT, is_local, is_portable=True)
        text = "results at this scale are portable, and a GPU computes other bytes"
        assert str(error.value) == (
            f"TOYCIRCUITS_DEVICE: found '{name}'; {text}; allowed: auto, cpu"
        )


def test_a_brace_in_the_path_is_named_because_dvc_fails_at_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"DVC cannot work in a folder whose path has \{ or \}"):
        environment.check_environment(tmp_path / "a{b}c")


def test_a_variable_of_tqdm_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toycircuits", "check"],
        cwd=ROOT,
        env=environment_of(PYTHONPATH=str(ROOT / "src"), TQDM_MININTERVAL="abc"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: found TQDM_MININTERVAL='abc': tqdm does not start: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("home", ["/dev/null/home", "/dev/null", ROOT / "dvc.yaml", "", None])
def test_a_home_that_is_no_folder_is_not_used(
    monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", str(home))
    environment.mend_home()
    assert "HOME" not in os.environ


def test_a_home_that_is_a_folder_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    environment.mend_home()
    assert os.environ["HOME"] == str(tmp_path)


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC asks for the name, and a container may run as a number: `docker run --user 12345`."""
    import getpass
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "x")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    environment.mend_home()
    assert getpass.getuser() == str(os.getuid())


@pytest.mark.slow
def test_dvc_works_with_a_home_that_is_a_file(tmp_path: Path) -> None:
    for home in (ROOT / "dvc.yaml", tmp_path / "none"):
        done = subprocess.run(
            [sys.executable, "-m", "toycircuits", "fsck"],
            cwd=ROOT,
            env=environment_of(PYTHONPATH=str(ROOT / "src"), HOME=str(home)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("shell", ["/nonexistent", "/bin/false", "/etc/passwd"])
def test_a_shell_that_runs_nothing_is_named(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("SHELL", shell)
    with pytest.raises(InputError, match=f"^SHELL: found '{shell}', which runs no commands"):
        environment.check_environment(ROOT)


def test_a_file_in_place_of_the_folder_of_states_is_named(tmp_path: Path) -> None:
    (tmp_path / ".resume").touch()
    with pytest.raises(InputError, match=r"^\.resume: found a file"):
        environment.check_environment(tmp_path)
