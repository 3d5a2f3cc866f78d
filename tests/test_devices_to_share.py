"""Which GPUs `toycircuits repro` shares out, under every value of CUDA_VISIBLE_DEVICES."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from toycircuits.commands import devices as module
from toycircuits.commands.devices import devices

ONE = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)\n"
TWO = ONE + "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)\n"
PARTS = ONE + (
    "  MIG 1g.10gb     Device  0: (UUID: MIG-cc-1)\n  MIG 1g.10gb     Device  1: (UUID: MIG-cd-2)\n"
)
NONE = None  # no nvidia-smi


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "TOYCIRCUITS_DEVICE"):
        monkeypatch.delenv(name, raising=False)


def answer(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, code: int = 0, error: str = ""
) -> None:
    """Let nvidia-smi print `listed`; None lets it not be there."""

    def run(arguments: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        assert arguments == ["nvidia-smi", "-L"]
        if listed is None:
            raise FileNotFoundError(2, "No such file or directory")
        return subprocess.CompletedProcess(arguments, code, listed, error)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("listed", [NONE, ""])
@pytest.mark.parametrize(
    "visible",
    ["0", "0,1", "0, 1", "", " ", "-1", "NoDevFiles", "GPU-aaaa", "all", "void", "7", ","],
)
def test_without_a_gpu_the_variable_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    listed: str | None,
    visible: str,
) -> None:
    answer(monkeypatch, listed)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices(1, 2) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("listed", "visible", "names", "note"),
    [
        (TWO, None, ["0", "1"], ""),
        (TWO, "0,1", ["0", "1"], ""),
        (TWO, "1, 0", ["1", "0"], ""),
        (TWO, "1", ["1"], ""),
        (TWO, "", None, ""),
        (TWO, "-1", None, ""),
        (TWO, "NoDevFiles", None, "and CUDA uses none of them"),
        (ONE, "0,1", ["0"], "found '0,1'; this machine has 1 GPUs, and CUDA uses 0"),
        (TWO, "0,-1,1", ["0"], "and CUDA uses 0"),
        (TWO, "7", None, "and CUDA uses none of them"),
        (TWO, "0,0", None, "and CUDA uses none of them"),
        (TWO, "GPU-bbbb-2", ["GPU-bbbb-2"], ""),
        (TWO, "GPU-b,GPU-a", ["GPU-b", "GPU-a"], ""),
        (TWO, "GPU-", None, "and CUDA uses none of them"),  # two begin like this
        (PARTS, None, ["MIG-cc-1", "MIG-cd-2"], ""),
        (PARTS, "MIG-cd-2", ["MIG-cd-2"], ""),
        (PARTS, "0", ["0"], ""),
        ("GPU 0: A\n  MIG 1g\n", None, ["0"], ""),
    ],
)
def test_gpus_are_those_that_are_there_and_visible(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    listed: str,
    visible: str | None,
    names: list[str] | None,
    note: str,
) -> None:
    answer(monkeypatch, listed)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices(1) == names
    err = capsys.readouterr().err
    assert bool(err) == bool(note)
    assert note in err
    assert devices(2) == (names and names * 2)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("", ["0", "1"]),
        ("auto", ["0", "1"]),
        ("cuda", ["0", "1"]),
        ("cpu", None),
        ("cuda:1", [""]),
        ("mps", None),
    ],
)
def test_the_device_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, names: list[str] | None
) -> None:
    answer(monkeypatch, TWO)
    monkeypatch.setenv("TOYCIRCUITS_DEVICE", asked)
    assert devices(1) == names


def test_fewer_places_than_asked_for_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, ONE)
    assert devices(1, 4) == ["0"]
    assert capsys.readouterr().err.startswith("note: -j 4: ")
    devices(4, 4)
    assert capsys.readouterr().err == ""


def test_a_tool_that_fails_is_not_taken_for_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "NVIDIA-SMI has failed because it could not\ncommunicate with the NVIDIA driver."
    answer(monkeypatch, "", 9, words)
    assert devices(1) is None
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "does not say which GPUs there are: NVIDIA-SMI has failed" in err
    answer(monkeypatch, "No devices were found\n", 6)
    assert devices(1) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("#!/bin/sh\nexec sleep 600\n", "no answer within 0.5 seconds"),
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
        ("#!/nonexistent\n", None),  # as if it were not there
        ("", "Exec format error"),
    ],
)
def test_a_tool_that_hangs_or_is_broken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    why: str | None,
) -> None:
    (tmp_path / "nvidia-smi").write_text(script)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "ANSWER_WITHIN", 0.5)
    assert devices(1) is None
    err = capsys.readouterr().err
    assert (f"does not say which GPUs there are: {why}" in err) if why else err == ""
