"""A compiled training is the eager one, up to rounding; without a compiler it is the eager one.

In processes of their own: shapes are not checked there, which the compiler could not see through.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from toycircuits.training import compiled

TRAIN = """
import importlib, sys, tempfile
from pathlib import Path
import torch
from toycircuits.config import find_run, read_params
from toycircuits.device import prepare
from toycircuits.training import Objective, train

slice_name, run_name, params_file = sys.argv[1:]
params = read_params(params_file) | {"scale": "quick"}
run = find_run(params, run_name)
prepare("cpu")
task = importlib.import_module(f"toycircuits.experiments.{slice_name}.task")
model_of = importlib.import_module(f"toycircuits.experiments.{slice_name}.model")
data_settings = run.section("data", task.DataSettings)
shape = run.section("model", model_of.ModelSettings, run.variants[0])
data = task.generate(data_settings, torch.Generator().manual_seed(0))
logs = []
for compile in (False, True):
    section = run.section("train", task.TrainSettings)
    changes = {"compile": compile, "schedule": None, "unit": "step", "length": 10, "stop": None}
    settings = section.model_copy(update={**changes, "log_every": 1, "checkpoint_every": 10})
    model = model_of.build(shape, data_settings, torch.Generator().manual_seed(1))
    own = settings.select(data)
    stream = task.batches(own, data_settings, settings, torch.Generator().manual_seed(2))
    with tempfile.TemporaryDirectory() as folder:
        objective = Objective(stream, task.loss, lambda model: {})
        log = train(model, objective, settings, Path(folder), "key", {})
    logs.append([row["train_loss"] for row in log])
apart = max(abs(a - b) for a, b in zip(*logs))
print(logs[0][0] - logs[0][-1], apart, torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slice_name", "run"),
    [
        ("list_copy", "list_copy_100"),
        ("reverse_increment", "reverse_increment_random"),
    ],
)
def test_compiled_training_is_the_eager_one_up_to_rounding(slice_name: str, run: str) -> None:
    arguments = [sys.executable, "-c", TRAIN, slice_name, run, str(PARAMS)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fell, apart, graphs = map(float, done.stdout.split())
    assert fell > 1e-3
    assert apart < 1e-4
    assert graphs >= 1


def test_without_a_compiler_the_loss_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loss(model: Any, batch: Any) -> Any:
        return None

    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled(loss, torch.device("cpu")) is loss
    assert capsys.readouterr().err == (
        "note: no C++ compiler found; training without torch.compile\n"
    )
