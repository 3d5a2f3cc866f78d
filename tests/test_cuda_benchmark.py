"""The GPU benchmark, on a CPU: its checks find planted faults, and its dry run gives its tables."""

import contextlib
import csv
import doctest
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from project import ROOT, environment_of
from torch import Tensor, nn

from toycircuits.core.config import read_params

sys.path.append(str(ROOT / "benchmarks/gpu"))

import cuda_agreement
import cuda_grokking
import cuda_machine
import cuda_rates
import cuda_report
import cuda_tables
from cuda_machine import OUT_OF_TIME, Deadline, attempt
from cuda_trainings import Case, Training, read_case

CPU = torch.device("cpu")
PARAMS = read_params(ROOT / "params.yaml")
SCRIPT = ROOT / "benchmarks/cuda.py"
COPY = ("order_by_scale_2l", "")


def case_of(run: str, variant: str = "", scale: str = "quick") -> Case:
    return read_case(PARAMS | {"scale": scale}, run, variant)


def other_order(case: Case) -> Training:
    """A training that sums in another order: a hook makes the model compute every activation."""
    training = case.begin(CPU)
    hooks = [m for name, m in training.model.named_modules() if "hook" in name]
    hooks[0].register_forward_hook(lambda *_: None)
    return training


class LowPrecision(nn.Module):
    """A model whose weights are cut to the 10 bits after the point that TF32 has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        cut = {
            name: value + (self._cut(value.detach()) - value.detach())  # the gradient as it is
            for name, value in self.model.named_parameters()
        }
        return torch.func.functional_call(self.model, cut, args, kwargs)

    @staticmethod
    def _cut(x: Tensor) -> Tensor:
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def test_another_order_of_sums_agrees() -> None:
    case = case_of(*COPY)
    found = cuda_agreement.compare(case, CPU, Deadline(60), 30, lambda: other_order(case))
    assert found.holds
    assert (found.taken, found.planned, found.held) == (30, 300, 30)
    assert found.gradient.device != found.gradient.cpu  # it is another order
    assert set(found.shares) == {"accuracy", "accuracy_lists"}


def test_low_precision_does_not_agree() -> None:
    case = case_of(*COPY)

    def begin() -> Training:
        training = case.begin(CPU)
        low = LowPrecision(training.model)
        return Training(low, training.stream, training.loss, training.train)

    found = cuda_agreement.compare(case, CPU, Deadline(60), 12, begin)
    assert not found.holds
    # The first losses hardly depend on the weights, which are small. The gradient does.
    assert not found.gradient.holds
    assert found.gradient.device > 100 * found.gradient.cpu
    assert "OUTSIDE" in str(found.gradient)


def test_a_device_that_computes_no_number_does_not_agree() -> None:
    case = case_of(*COPY)

    def begin() -> Training:
        training = case.begin(CPU)
        training.compute = lambda batch: training.update(batch) * math.nan
        return training

    assert not cuda_agreement.compare(case, CPU, Deadline(60), 3, begin).losses.holds


def test_what_has_come_apart_on_the_cpu_is_not_judged() -> None:
    apart = cuda_agreement.Distance(device=0.5, cpu=0.002, multiple=100)
    assert apart.holds
    assert "not judged" in str(apart)
    assert not cuda_agreement.Distance(device=0.5, cpu=0.001, multiple=100).holds


def test_no_time_means_no_cells(tmp_path: Path) -> None:
    plan = cuda_report.Plan(PARAMS, CPU, tiny=False)
    report = cuda_tables.Report(tmp_path / "t.md", "Title", {})
    cuda_report.report_agreement(report, plan, Deadline(0))
    assert [row[1] for row in report.sections[0].rows] == [OUT_OF_TIME] * len(cuda_report.COMPARED)
    assert not report.problems
    case = case_of(*COPY)
    taken = cuda_agreement.compare(case, CPU, Deadline(0), None).taken
    assert taken == cuda_agreement.CHECK_EVERY


def test_a_failure_is_shown_in_its_cells_and_in_the_exit_code(tmp_path: Path) -> None:
    def hide() -> None:
        try:
            raise ValueError("first\nand more")
        finally:
            raise RuntimeError("second")

    assert attempt(lambda: 3, Deadline(60)) == 3
    failed = "failed: RuntimeError: second, after ValueError: first"
    assert attempt(hide, Deadline(60)) == failed
    row = cuda_rates.Many(8, eager=2.0)
    cuda_report.fill(row, hide, Deadline(60))
    assert row == cuda_rates.Many(8, failed, 2.0, failed, failed, failed)
    report = cuda_tables.Report(tmp_path / "folder" / "t.md", "Title", {"device": "none"})
    report.begin("Section", "Text.", ["run", "rate"])
    report.put(0, ["good", 1234.5])
    report.put(1, ["bad", row.graph])
    report.put(2, ["outside", 0.5], problem=True)
    assert report.problems == ["Section: bad", "Section: outside"]
    assert "| good | 1,234 |" in report.path.read_text()


def test_a_cell_that_takes_too_long_is_stopped() -> None:
    start = time.monotonic()
    assert attempt(lambda: time.sleep(30), Deadline(0.2)) == OUT_OF_TIME
    assert attempt(lambda: time.sleep(0.3), Deadline(60)) is None  # and its timer is off
    started: list[int] = []
    assert attempt(lambda: started.append(1), Deadline(0)) == OUT_OF_TIME
    assert not started
    assert time.monotonic() - start < 20


def test_a_library_that_catches_exceptions_does_not_keep_a_cell_going() -> None:
    def stubborn() -> None:
        with contextlib.suppress(Exception):
            time.sleep(30)
        raise AssertionError("it went on")

    assert attempt(stubborn, Deadline(0.2)) == OUT_OF_TIME


def test_compiled_steps_are_measured_in_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(case: Case, *_: object) -> float:
        if case.run == "modular_subtraction":
            raise RuntimeError("no compiler")
        return 12.5

    monkeypatch.setattr(cuda_report, "measure_compiled", measure)
    plan = cuda_report.Plan(PARAMS, CPU, tiny=True)
    report = cuda_tables.Report(tmp_path / "t.md", "Title", {})
    cuda_report.report_compiled(report, plan, Deadline(600))
    cuda_report.report_compiled(report, plan, Deadline(cuda_report.FOR_COMPILED))
    found, late = ([row[1] for row in section.rows] for section in report.sections)
    assert found == ["12.5", "12.5", "failed: RuntimeError: no compiler"]
    assert late == [OUT_OF_TIME] * 3
    assert report.problems == ["Compiled: modular_subtraction"]


def test_models_that_do_not_fit_are_trained_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measure(case: Case, device: object, clock: object, row: cuda_rates.Many, n: int) -> None:
        tried.append(n)
        if n > 3:
            raise torch.cuda.OutOfMemoryError
        row.chunk = n

    monkeypatch.setattr(cuda_rates, "_measure_chunk", measure)
    row = cuda_rates.Many(8)
    cuda_rates.measure_many(case_of(*COPY), CPU, cuda_rates.Clock(), row)
    assert (tried, row.chunk) == ([8, 4, 2], 2)


def test_a_signal_leaves_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Training.advance

    def stop_at_7(training: Training) -> Tensor:
        if training.taken == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(training)

    monkeypatch.setattr(Training, "advance", stop_at_7)
    file = tmp_path / "curves.csv"
    case = case_of("modular_subtraction")
    curves = cuda_grokking.train_many(case, CPU, Deadline(60), 2, file, case.train.length)
    assert (curves.epochs, curves.why) == (7, f"signal {signal.SIGTERM.value}")
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["seed"], row["epoch"]) for row in rows] == [
        *[("999", "0"), ("1000", "0")],
        *[("999", "5"), ("1000", "5")],
    ]
    alone = case.begin(CPU)
    losses = [float(alone.advance()) for _ in range(6)]
    assert float(rows[0]["train_loss"]) == pytest.approx(losses[0], rel=1e-6)
    assert float(rows[2]["train_loss"]) == pytest.approx(losses[5], rel=1e-4)


def test_epochs_of_grokking_follow_the_rules_of_the_project() -> None:
    epochs = np.arange(0, 500, 100)
    losses = {
        **{7: [5.0, 6.0, 1.0, 1e-5, 1e-6], 8: [5.0, 6.0, 7.0, 1.0, 0.5]},
        9: [5.0, 6.0, 7.0, 8.0, 9.0],  # its largest loss may be yet to come
    }
    rows = [
        (seed, epoch, 1e-6, loss)
        for k, epoch in enumerate(epochs)
        for seed, loss in ((seed, found[k]) for seed, found in losses.items())
    ]
    table = pd.DataFrame(rows, columns=list(cuda_grokking.COLUMNS))
    curves = cuda_grokking.Curves([7, 8, 9], 400, 400, table, "")
    rules = cuda_grokking.rules_of(PARAMS | {"scale": "paper"})
    phases = cuda_grokking.phases_of(curves, 113, rules).set_index("seed")
    assert phases["grokked_epoch"][7] == 300
    assert math.isnan(phases["grokked_epoch"][8])
    assert phases["memorisation_end"].to_list()[:2] == [100, 200]
    assert math.isnan(phases["memorisation_end"][9])
    assert cuda_grokking.quantile(phases["grokked_epoch"].to_list(), 0.3) == 300
    assert cuda_grokking.quantile(phases["grokked_epoch"].to_list(), 0.75) == math.inf


@pytest.mark.parametrize("module", [cuda_grokking, cuda_tables, cuda_machine])
def test_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def script(
    *arguments: str | Path, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, SCRIPT, *map(str, arguments)],
        env=environment_of(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    done = script("--device", "cpu", "--tiny", "--out", tmp_path / "t.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "t.md").read_text()
    assert "failed" not in text
    assert OUT_OF_TIME not in text
    for title in ("Agreement", "One model", "Many models"):
        assert f"## {title}" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    tiny = cuda_report.TINY_RUNS
    many = len(cuda_report.TINY_STACKED) * len(cuda_report.TINY_SIZES)
    assert len(rows) == 3 * 2 + 2 * len(tiny) + many
    assert torch.__version__ in text


@pytest.mark.slow
def test_dry_run_of_many_seeds(tmp_path: Path) -> None:
    done = script("grok", "--device", "cpu", "--tiny", "--seeds", "2", "--out", tmp_path / "g.md")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "g.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == list(cuda_grokking.COLUMNS)
    assert [row[:2] for row in rows[1:]] == [
        *[["999", "0"], ["1000", "0"]],
        *[["999", "4"], ["1000", "4"]],
    ]
    assert (tmp_path / "g_phases.csv").exists()
    assert "| grokked_epoch | 0 of 2 |" in (tmp_path / "g.md").read_text()


def test_missing_packages_are_named_in_one_line() -> None:
    done = script("--tiny", options=("-I", "-S"))  # without any installed package
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "packages are missing: torch numpy" in done.stderr
    assert "pydantic" in done.stderr


@pytest.fixture
def launcher() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_launcher", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_workspaces_of_cublas_are_fixed(launcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    launcher.fix_workspaces()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    launcher.fix_workspaces()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_wheels_bring_what_is_missing(
    launcher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(launcher.PACKAGES, "made_for_this_test", "made-for-this-test")
    assert launcher.missing_packages() == ["made-for-this-test"]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(SystemExit, match="found no wheels"):
        launcher.unpack_wheels(wheels, tmp_path / "site")
    with zipfile.ZipFile(wheels / "made-1-py3-none-any.whl", "w") as archive:
        archive.writestr("made_for_this_test/__init__.py", "")
    launcher.unpack_wheels(wheels, tmp_path / "site")
    assert launcher.missing_packages() == []


def test_nothing_hides_the_package_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys; sys.argv = [{str(SCRIPT)!r}, '--help']; import runpy\n"
    code += f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit: pass\n"
    code += "import importlib.util; spec = importlib.util.find_spec('cuda')\n"
    code += "print('origin', spec and spec.origin)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment_of(),
    )
    assert "benchmarks" not in done.stdout.splitlines()[-1]
