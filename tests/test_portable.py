"""Portable results: the pins reach every library, and other processors compute the same bytes."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from project import ROOT, Project, environment_of, output, python

from toycircuits.core import device, portable
from toycircuits.core.config import InputError
from toycircuits.core.portable import PINS, is_portable, pin, refuse_compilation

PARAMS: dict[str, Any] = {"scale": "quick", "portable": {"quick": True, "paper": False}}
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 is pinned")
TUNABLES = "GLIBC_TUNABLES"
RUNS = (
    *("modular_subtraction", "list_copy_10", "list_copy_100_2l"),
    *("reverse_increment_sequential", "linear_regression_h1", "linear_regression_stack"),
)
# Processors that qemu emulates: without AVX, and with AVX2 and FMA.
PROCESSORS = ("Nehalem", "Haswell")
QEMU = shutil.which("qemu-x86_64")

# What a process does with `pin`: it says how it was started.
SCRIPT = """
import json, os, sys
from toycircuits.core.portable import pin
pinned = pin(json.loads(os.environ["PARAMS"]))
state = {"pinned": pinned, "argv": sys.argv, "flags": sys.flags.no_user_site, "pid": os.getpid()}
loaded = {"torch", "numpy", "scipy"} & {*sys.modules}
print(json.dumps(state | {"environment": {**os.environ}, "loaded": [*loaded]}))
"""


def at(scale: str) -> dict[str, Any]:
    return PARAMS | {"scale": scale}


def without_pins() -> dict[str, str]:
    return {name: value for name, value in environment_of().items() if name not in PINS}


def start(tmp_path: Path, scale: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """Run `SCRIPT` at a scale, with more variables; its process ID, and what it says."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    own = {"PYTHONPATH": str(ROOT / "src"), "PARAMS": json.dumps(at(scale)), "DVC_STAGE": "a@b"}
    process = subprocess.Popen(
        [sys.executable, "-s", str(script), "a name", "--x"],
        env=without_pins() | own | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    return process.pid, json.loads(out)


@ON_X86
@pytest.mark.parametrize("variables", [{}, {"OMP_NUM_THREADS": "7", "MKL_CBWR": "AVX2"}])
def test_a_process_without_pins_starts_again_as_it_was_started(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    pid, state = start(tmp_path, "quick", **variables)
    assert state["pinned"] is True
    assert state["pid"] == pid  # whoever watches or stops the process still can
    assert state["argv"] == [str(tmp_path / "script.py"), "a name", "--x"]
    assert state["flags"] == 1  # -s
    environment = state["environment"]
    assert PINS.items() <= environment.items()
    assert environment["DVC_STAGE"] == "a@b"
    assert environment["PYTHONPATH"] == str(ROOT / "src")
    assert environment[portable.STARTED_AGAIN] == str(pid)
    assert state["loaded"] == []


def test_a_process_with_pins_goes_on(tmp_path: Path) -> None:
    _, state = start(tmp_path, "quick", **PINS)
    assert state["pinned"] is True
    assert portable.STARTED_AGAIN not in state["environment"]


def test_what_is_not_portable_keeps_its_variables(tmp_path: Path) -> None:
    _, state = start(tmp_path, "paper", OMP_NUM_THREADS="7")
    assert state["pinned"] is False
    assert state["environment"]["OMP_NUM_THREADS"] == "7"
    assert portable.STARTED_AGAIN not in state["environment"]


@ON_X86
def test_what_is_not_portable_is_not_computed_with_pins(tmp_path: Path) -> None:
    """As when somebody edits `portable` while `toycircuits repro` runs."""
    _, state = start(tmp_path, "paper", **PINS)
    assert state["pinned"] is False
    assert not PINS.keys() & state["environment"].keys()


@ON_X86
def test_pins_that_something_takes_back_are_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['MKL_CBWR'] = 'AVX2'\n")
    script = tmp_path / "script.py"
    script.write_text(
        "from toycircuits.core.config import exit_on_bad_input\n"
        "with exit_on_bad_input():\n"
        + "".join(f"    {line}\n" for line in SCRIPT.strip().split("\n"))
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env=without_pins() | {"PYTHONPATH": path, "PARAMS": json.dumps(PARAMS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: MKL_CBWR: something sets it whenever [^\n]+\n", done.stderr)


@ON_X86
def test_another_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PINS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="it runs within another program"):
        pin(PARAMS)
    assert pin(at("paper")) is False


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "portable: found None; allowed: true or false per scale"),
        (True, "portable: found True; allowed: true or false per scale"),
        ({}, "portable.quick: found None; allowed: true or false"),
        ({"quick": 1}, "portable.quick: found 1; allowed: true or false"),
        ({"quick": "true"}, "portable.quick: found 'true'; allowed: true or false"),
    ],
)
def test_a_setting_that_is_no_yes_or_no_is_named(value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        is_portable(PARAMS | {"portable": value})
    assert str(error.value) == message


def test_compiled_code_is_not_portable() -> None:
    with pytest.raises(InputError) as error:
        refuse_compilation(True, PARAMS, "quick.some")
    why = "allowed is false, because portable.quick is true"
    assert str(error.value) == f"quick.some.train.compile: found true; {why}"
    refuse_compilation(False, PARAMS, "quick.some")
    refuse_compilation(True, at("paper"), "paper.some")


# --- what the libraries make of the pins ---

LIBRARIES = """
import numpy as np, scipy.linalg, torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from threadpoolctl import threadpool_info
blas = [info for info in threadpool_info() if info["internal_api"] == "openblas"]
assert len(blas) == 2, blas  # of NumPy and of SciPy
print(*sorted({(info["architecture"], info["num_threads"]) for info in blas}))
print([name for name in __cpu_dispatch__ if __cpu_features__[name]])
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
"""
ROUNDED = "import hashlib, math\ntext = repr([math.exp(x / 7919) for x in range(99999)]).encode()\n"
ROUNDED += "print(hashlib.sha256(text).hexdigest())"


@ON_X86
def test_the_libraries_take_the_pins_without_a_warning() -> None:
    lines = python(ROOT, "-W", "error", "-c", LIBRARIES, **PINS).splitlines()
    assert lines == ["('Nehalem', 1)", "[]", "DEFAULT 1"]


@ON_X86
def test_the_c_library_computes_without_fused_multiply_and_add() -> None:
    if not re.search(r"^flags.*\bfma\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        pytest.skip("this processor has no FMA, so that the C library has nothing to choose")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc chooses")
    pinned, chosen = (python(ROOT, "-c", ROUNDED, GLIBC_TUNABLES=t) for t in (PINS[TUNABLES], ""))
    assert pinned != chosen


@pytest.mark.usefixtures("restored_torch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", device.APPROXIMATED)
def test_numpy_computes_what_mkl_approximates(name: str, dtype: torch.dtype) -> None:
    x = torch.rand(1000, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert device.prepare("auto", is_portable=True) == torch.device("cpu")
    expected = torch.from_numpy(device.APPROXIMATED[name](x.numpy()))
    function = getattr(torch, name)
    assert torch.equal(function(x), expected)
    assert torch.equal(function(x.t()), expected.t())
    assert torch.equal(getattr(x.clone(), f"{name}_")(), expected)
    assert torch.equal(function(x, out=torch.empty(0, dtype=dtype)), expected)
    assert function(x[0, 0]).shape == ()
    assert function(x.bfloat16()).dtype == torch.bfloat16
    assert function(torch.tensor(1)).dtype == torch.get_default_dtype()
    y = x[:20].double().requires_grad_()
    assert torch.autograd.gradcheck(function, (y,))


@pytest.mark.usefixtures("restored_torch")
def test_numpys_square_root_is_rounded_correctly_and_its_replacement_ends() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    correct = x.double().sqrt().float()  # 53 bits of a root suffice to round it to 24
    device.prepare("cpu", is_portable=True)
    assert torch.equal(x.sqrt(), correct)
    assert torch.isnan(torch.tensor(-1.0).sqrt())  # and no warning
    device._replaced.clear()
    assert torch.allclose(x.sqrt(), correct)


@pytest.mark.usefixtures("restored_torch")
def test_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_device", torch.device)
    with pytest.raises(InputError) as error:
        device.prepare("cuda:1", is_portable=True)
    assert str(error.value).startswith("--device: found 'cuda:1'; results at this scale are portab")


# --- all ways to start a stage, and other processors ---


@pytest.fixture
def small(tmp_path: Path) -> Project:
    """A project with small models, in which matrices are large enough for blocks of kernels."""
    project = Project(tmp_path / "small")
    params = project.read_params()
    params["quick"]["modular_subtraction"]["model"] |= {"d_model": 48, "d_head": 24, "d_mlp": 96}
    one = {"weight_seeds": [0], "batch_seeds": [0], "checkpoint_every": 30}
    params["quick"]["list_copy_10"]["train"] |= one
    params["quick"]["list_copy_10"]["measure"]["probe"]["folds"] = 3
    stack = params["runs"]["linear_regression_stack"]
    stack |= {"scales": {}, "variants": {"untied": stack["variants"]["untied"]}}
    cell = params["runs"]["list_copy_100_2l"]
    cell["model"] = {"n_layers": 2, "normalization": "LN", "use_bias": True}
    cell["model"] |= {"d_model": 48, "d_head": 48}
    cell["variants"] = {"free": {"freeze_W_V": False, "freeze_W_O": False}}
    project.write_params(params)
    return project


def computed(project: Project, *before: str) -> dict[str, str]:
    """Hashes of what `RUNS` compute in a copy of `project`, in one process with the pins.

    Args:
        before: the start of the command: an emulator.
    """
    copy = project.copy(project.folder.with_name("-".join(["computed", *before[1:]])))
    script = str(ROOT / "tests/portable_steps.py")
    variables = PINS | {"PYTHONPATH": "src", "TOYCIRCUITS_AUDIT": ""}
    output(copy.folder, *before, sys.executable, script, *RUNS, **variables)
    return copy.results()


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64 (Debian: qemu-user) to emulate others")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_another_processor_computes_the_same_bytes(small: Project, processor: str) -> None:
    here = computed(small)
    assert len(here) > 30
    assert computed(small, str(QEMU), "-cpu", processor) == here


@ON_X86
@pytest.mark.slow
def test_every_way_to_start_a_stage_gives_the_same_bytes(finished: Project, tmp_path: Path) -> None:
    """By plain `dvc repro`, by hand, and by forks of `toycircuits repro`; unpinned gives others."""
    expected = finished.results("artifacts/trajectories", "artifacts/data")
    name = "list_copy_10"
    copy = finished.copy(tmp_path / "by-hand")
    for folder in ("artifacts/trajectories", "artifacts/data"):
        shutil.rmtree(copy.folder / folder)
    (copy.folder / "artifacts/data").mkdir()
    contradicting = {**copy.stage_environment, "OMP_NUM_THREADS": "2", "MKL_CBWR": "AUTO"}
    for stage in ("generate", "train"):
        code, _, err = copy.run("python", f"stages/{stage}.py", name, env=contradicting)
        assert code == 0, err
    assert copy.results("artifacts/trajectories", "artifacts/data") == expected

    copy = finished.copy(tmp_path / "forks")
    code, _, err = copy.run("toycircuits", "repro", "-j", "1", "--force", name)
    assert code == 0, err
    assert copy.results("artifacts/trajectories", "artifacts/data") == expected
    assert copy.results("reports") == finished.results("reports")

    copy = finished.copy(tmp_path / "unpinned")
    params = copy.read_params()
    params["portable"]["quick"] = False
    copy.write_params(params)
    assert f"train@{name}" in copy.repro()
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        assert copy.results("artifacts/trajectories") != finished.results("artifacts/trajectories")
