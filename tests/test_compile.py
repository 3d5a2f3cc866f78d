"""A compiled training is the eager one, up to rounding; without a compiler it is the eager one.

In processes of their own: shapes are not checked there, which the compiler could not see through.
Torch's compiler takes seconds to load, so that one process compiles all examples.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compiled_training import RUNS
from project import ROOT, environment_of

# In the same process: a pool of compilers costs more than it saves where few kernels are compiled.
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "src"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
PROBE = """
import torch
from toycircuits.core.gradients import can_compile
print(can_compile(torch.device("cpu")))
"""


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment_of(**ENVIRONMENT, **environment),
        capture_output=True,
        text=True,
        check=False,
    )


SCRIPT = ROOT / "tests/compiled_training.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all examples: results.json, and what each compiled training left."""
    folder = tmp_path_factory.mktemp("compiled")
    done = python(SCRIPT, "all", folder)
    assert done.returncode == 0, done.stderr
    return folder


def result(whole: Path, name: str) -> dict[str, Any]:
    results = json.loads((whole / "results.json").read_text())
    assert "error" not in results[name], results[name]["error"]
    return dict(results[name])


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_compiled_training_is_the_eager_one_up_to_rounding(whole: Path, run: str) -> None:
    compared = result(whole, run)
    assert compared["fell"] > 1e-3
    assert compared["apart"] < 1e-4
    assert compared["graphs"] == RUNS[run]


@pytest.mark.slow
def test_a_killed_compiled_training_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    """Each process compiles anew, and to the same code: nothing worked out before is in it."""
    assert python(SCRIPT, "die", tmp_path, "9").returncode == 9
    last = python(SCRIPT, "die", tmp_path, "0")
    assert last.returncode == 0
    assert "resuming at step 8" in last.stderr
    expected, resumed = (
        sorted(folder.rglob("*.safetensors")) for folder in (whole / "list_copy_100", tmp_path)
    )
    assert [path.name for path in expected] == [path.name for path in resumed]
    assert len(expected) == 4  # three checkpoints, and the state at the end
    assert [path.read_bytes() for path in expected] == [path.read_bytes() for path in resumed]


@pytest.mark.slow
def test_a_hook_that_is_set_after_compiling_is_seen(whole: Path) -> None:
    hook = result(whole, "hook")
    assert hook["before"] == hook["after"] != hook["hooked"]
    assert hook["graphs"] == 2  # with and without the hook, each compiled once


def test_without_a_compiler_nothing_is_compiled() -> None:
    done = python("-c", PROBE, CXX="no-such-compiler")
    assert done.stdout.strip() == "False", done.stderr
    assert done.stderr.startswith("note: training without torch.compile: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_with_a_compiler_it_can(whole: Path) -> None:
    assert result(whole, "probe") == {"possible": True, "printed": ""}
