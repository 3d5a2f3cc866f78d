"""A compiled training is the eager one, up to rounding; without a compiler it is the eager one.

In processes of their own: shapes are not checked there, which the compiler could not see through.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PREPARE = """
import importlib, sys
from pathlib import Path
import torch
from toycircuits.core import train_settings
from toycircuits.core.config import find_run, read_params
from toycircuits.core.device import prepare
from toycircuits.core.training import Objective, Schedule, train

slice_name, run_name, params_file, *rest = sys.argv[1:]
run = find_run(read_params(params_file) | {"scale": "quick"}, run_name)
prepare("cpu")
task = importlib.import_module(f"toycircuits.experiments.{slice_name}.task")
model_of = importlib.import_module(f"toycircuits.experiments.{slice_name}.model")
data_settings = run.section("data", task.DataSettings)
shape = run.section("model", model_of.ModelSettings, run.variants[0])
section = run.section("train", task.TrainSettings)
data = section.select(task.generate(data_settings, torch.Generator().manual_seed(0)))

def go(folder, compile, evaluate=lambda model: {}):
    changes = {"unit": "step", "length": 20, "schedule": Schedule(warmup=3, peak=1.3)}
    changes |= {"log_every": 1, "checkpoint_every": 10, "stop": None, "compile": compile}
    settings = section.model_copy(update=changes)
    model = model_of.build(shape, data_settings, torch.Generator().manual_seed(1))
    stream = task.batches(data, data_settings, settings, torch.Generator().manual_seed(2))
    log = train(model, Objective(stream, task.loss, evaluate), settings, Path(folder), "key", {})
    return [row["train_loss"] for row in log]

def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
"""

COMPARE = """
import tempfile
with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
    eager, compiled = go(a, False), go(b, True)
apart = max(abs(a - b) for a, b in zip(eager, compiled, strict=True))
print(eager[0] - eager[-1], apart, graphs())
"""

DIE = """
import os
training.RESUME_EVERY = -1.0  # a state is saved before every step
folder, last = rest[0], int(rest[1])
calls = 0
def evaluate(model):
    global calls
    calls += 1
    if calls == last:
        os._exit(9)
    return {}
go(folder, True, evaluate)
"""

HOOK = """
made = model_of.build(shape, data_settings, torch.Generator().manual_seed(1))
parameters = [parameter for parameter in made.parameters() if parameter.requires_grad]
batch = task.batches(data, data_settings, section, torch.Generator().manual_seed(2)).next()
eager = training.gradients_of(task.loss, parameters)
fast = training.compiled(eager, torch.device("cpu"))

def both():
    pair = [one(made, batch) for one in (eager, fast)]
    torch.testing.assert_close(pair[0], pair[1])
    return pair[1][0].item()

before = both()
with made.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: x * 0)]):
    assert both() != before
assert both() == before
print(graphs())
"""

PROBE = """
import torch
from toycircuits.core.training import can_compile
print(can_compile(torch.device("cpu")))
"""

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


def python(
    script: str, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slice_name", "run", "n_graphs"),
    [
        ("list_copy", "list_copy_100", 1),
        ("list_copy", "list_copy_100_2l_ln_bias", 1),  # D = 128
        ("reverse_increment", "reverse_increment_random", 2),  # the last batch is a smaller one
        ("linear_regression", "linear_regression_h2", 1),
        ("modular_arithmetic", "modular_subtraction", 1),
    ],
)
def test_compiled_training_is_the_eager_one_up_to_rounding(
    slice_name: str, run: str, n_graphs: int
) -> None:
    done = python(PREPARE + COMPARE, slice_name, run, PARAMS)
    assert done.returncode == 0, done.stderr
    fell, apart, graphs = map(float, done.stdout.split())
    assert fell > 1e-3
    assert apart < 1e-4
    assert graphs == n_graphs


@pytest.mark.slow
def test_a_killed_compiled_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Each process compiles anew, and to the same code: nothing worked out before is in it."""
    script, run = PREPARE + DIE, ("list_copy", "list_copy_100", PARAMS)
    assert python(script, *run, tmp_path / "whole", "0").returncode == 0
    for death in ("7", "9"):
        assert python(script, *run, tmp_path / "killed", death).returncode == 9
    last = python(script, *run, tmp_path / "killed", "0")
    assert last.returncode == 0
    assert "resuming at step 14" in last.stderr
    whole, killed = (
        sorted((tmp_path / name).rglob("*.safetensors")) for name in ("whole", "killed")
    )
    assert [path.name for path in whole] == [path.name for path in killed]
    assert len(whole) == 4  # three checkpoints, and the state at the end
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in killed]


@pytest.mark.slow
def test_a_hook_that_is_set_after_compiling_is_seen() -> None:
    done = python(PREPARE + HOOK, "list_copy", "list_copy_100", PARAMS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"  # with and without the hook, each compiled once


def test_without_a_compiler_nothing_is_compiled() -> None:
    done = python(PROBE, CXX="no-such-compiler")
    assert done.stdout.strip() == "False", done.stderr
    assert done.stderr.startswith("note: training without torch.compile: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_with_a_compiler_it_can() -> None:
    done = python(PROBE)
    assert (done.stdout.strip(), done.stderr) == ("True", "")
