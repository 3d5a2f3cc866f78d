"""Compiled trainings, for test_compile.py, which runs this file in processes of their own.

Usage: compiled_training.py all FOLDER | die FOLDER CALL
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toycircuits.core import training
from toycircuits.core.batches import BatchStream
from toycircuits.core.config import find_run, read_params
from toycircuits.core.device import prepare
from toycircuits.core.gradients import can_compile, compiled, gradients_of
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.train_settings import Schedule
from toycircuits.core.training import Objective

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
RUNS = {
    "list_copy_100": 1,
    "list_copy_100_2l_ln_bias": 1,  # D = 128
    "reverse_increment_random": 2,  # the last batch is a smaller one
    "linear_regression_h2": 1,
    "linear_regression_stack": 1,
    "modular_subtraction": 1,
}  # run -> how many graphs are compiled
CHANGES = {
    **{"unit": "step", "length": 20, "schedule": Schedule(warmup=3, peak=1.3)},
    **{"log_every": 1, "checkpoint_every": 10, "stop": None},
}


@dataclass
class Example:
    """A run at its quick settings, and the means to train its model for a few steps."""

    name: str

    def __post_init__(self) -> None:
        run = find_run(read_params(PARAMS) | {"scale": "quick"}, self.name)
        self.task, self.architecture = load_task(run.entry.slice), load_model(run.entry.slice)
        self.data_settings = run.section("data", self.task.DataSettings)
        self.shape = run.section("model", self.architecture.ModelSettings, run.variants[0])
        self.settings = run.section("train", self.task.TrainSettings)
        tensors = self.task.generate(self.data_settings, torch.Generator().manual_seed(0))
        self.data = self.settings.select(tensors)

    def model(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        return self.architecture.build(self.shape, self.data_settings, generator)

    def stream(self, settings: Any) -> BatchStream:
        generator = torch.Generator().manual_seed(2)
        return self.task.batches(self.data, self.data_settings, settings, generator)

    def train(
        self, folder: Path, compile: bool, evaluate: Callable[[Any], Any] = lambda model: {}
    ) -> list[float]:
        """Losses of 20 steps."""
        settings = self.settings.model_copy(update=CHANGES | {"compile": compile})
        objective = Objective(self.stream(settings), self.task.loss, evaluate)
        rows = training.train(self.model(), objective, settings, folder, "key", {})
        return [row["train_loss"] for row in rows]


def count_graphs() -> int:
    """How many graphs were compiled since the last call."""
    counters = torch._dynamo.utils.counters["stats"]
    return int(counters.pop("unique_graphs", 0))


def compare(name: str, folder: Path) -> dict[str, float]:
    """Train eagerly and compiled; the compiled one leaves its checkpoints in `folder`."""
    example = Example(name)
    with tempfile.TemporaryDirectory() as other:
        eager = example.train(Path(other), compile=False)
    fast = example.train(folder, compile=True)
    apart = max(abs(a - b) for a, b in zip(eager, fast, strict=True))
    return {"fell": eager[0] - eager[-1], "apart": apart, "graphs": count_graphs()}


def hook_later() -> dict[str, float]:
    """Set a hook on a model whose loss is compiled already."""
    example = Example("list_copy_100")
    model, batch = example.model(), example.stream(example.settings).next()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    eager = gradients_of(example.task.loss, parameters)
    fast = compiled(eager, torch.device("cpu"))

    def loss() -> float:
        results = [differentiate(model, batch) for differentiate in (eager, fast)]
        torch.testing.assert_close(*results)
        return results[1][0].item()

    before = loss()
    with model.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: x * 0)]):
        hooked = loss()
    return {"before": before, "hooked": hooked, "after": loss(), "graphs": count_graphs()}


def probe() -> dict[str, Any]:
    """Ask whether this machine can compile."""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        possible = can_compile(torch.device("cpu"))
    count_graphs()
    return {"possible": possible, "printed": printed.getvalue()}


def run_all(folder: Path) -> None:
    """Write the results of everything to results.json, and errors in their place."""
    todo: dict[str, Callable[[], dict[str, Any]]] = {"probe": probe, "hook": hook_later}
    for name in RUNS:
        todo[name] = lambda name=name: compare(name, folder / name)  # type: ignore[misc]
    results = {}
    for name, work in todo.items():
        try:
            results[name] = work()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    (folder / "results.json").write_text(json.dumps(results))


def die(folder: Path, last: int) -> None:
    """Train compiled, and die within the `last` logging; every step begins by saving the state."""
    training.RESUME_EVERY = -1.0
    calls = 0

    def evaluate(model: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == last:
            os._exit(9)
        return {}

    Example("list_copy_100").train(folder, compile=True, evaluate=evaluate)


if __name__ == "__main__":
    prepare("cpu")
    if sys.argv[1] == "all":
        run_all(Path(sys.argv[2]))
    else:
        die(Path(sys.argv[2]), int(sys.argv[3]))
