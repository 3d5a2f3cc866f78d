"""Trainings of the GPU benchmark, on a CPU: side by side, with fixed memory, and as graphs.

What a graph of kernels forbids, such as numbers copied from the host, is found on the device
"meta": its tensors have shapes and no values.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project import ROOT
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toycircuits.core.batches import Batch
from toycircuits.core.config import read_params
from toycircuits.core.train_settings import Schedule
from toycircuits.core.training import Objective, train

sys.path.append(str(ROOT / "benchmarks/gpu"))

import cuda_rates
import cuda_report
from cuda_trainings import WARM_UP, Captured, Case, Constants, Stack, Training, read_case

CPU, META = torch.device("cpu"), torch.device("meta")
PARAMS = read_params(ROOT / "params.yaml")
COPY = ("order_by_scale_2l", "")
# One that repeats the order of its batches, one that draws new ones, and one with what no other
# has: LayerNorm, biases, and a bias (b_K) without a gradient.
STACKED = [
    COPY,
    ("order_by_scale_2l_new_orders", ""),
    ("list_copy_100_2l_ln_bias", "free_V_free_O"),
    ("modular_subtraction", ""),
]


def case_of(run: str, variant: str = "", scale: str = "quick") -> Case:
    return read_case(PARAMS | {"scale": scale}, run, variant)


def in_double(stack: Training) -> Training:
    """A training of the same models in float64."""
    assert isinstance(stack.model, Stack)
    stack.model.double()
    stack.model._first[0].double()
    return Training(stack.model, stack.stream, stack.loss, stack.train)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)


def test_it_trains_as_the_project_does(tmp_path: Path) -> None:
    case = case_of("reverse_increment_random")  # with a schedule, clipping and uneven batches
    assert case.train.clip_grad_norm
    schedule = Schedule(warmup=1, peak=1.3)
    settings = case.train.model_copy(update={"length": 3, "schedule": schedule})
    theirs, ours = case.begin(CPU), case.begin(CPU)
    ours.train = settings
    objective = Objective(theirs.stream, case.task.loss, lambda model: {})  # type: ignore[arg-type]
    rows = train(theirs.model, objective, settings, tmp_path / "state", "key", {})
    losses = [float(ours.advance()) for _ in range(int(rows[-1]["step"]))]
    assert [row["train_loss"] for row in rows[:-1]] == losses[:: ours.stream.per_epoch]
    assert len({row["lr"] for row in rows}) == 3


@pytest.mark.parametrize(("run", "variant"), STACKED)
def test_each_model_of_a_stack_trains_as_it_does_alone(run: str, variant: str) -> None:
    case, n, steps = case_of(run, variant), 3, 12  # more steps than an epoch of copying has
    stack = in_double(case.begin_side_by_side(CPU, n))
    pairs = case.seed_pairs(n)
    alone = [case.begin(CPU, pair, torch.float64) for pair in pairs]
    for _ in range(steps):
        for training in (stack, *alone):
            training.advance()
    assert isinstance(stack.model, Stack)
    states = [dict(training.model.named_parameters()) for training in alone]
    for k, state in enumerate(states):
        # In float64, rounding errors of 1e-16 grow to far less than this in a few steps.
        assert distance(stack.model.state_of(k), state) < 1e-9
        other = states[(k + 1) % n]
        assert distance(stack.model.state_of(k), other) > 1e-3


def test_the_check_of_a_stack_finds_models_with_the_wrong_batches() -> None:
    case = case_of(*COPY)
    right = case.begin_side_by_side(CPU, 3)
    assert cuda_rates.difference_of_stack(case, right, 3) < cuda_rates.TOLERANCE
    wrong = case.begin_side_by_side(CPU, 3)
    wrong.stream._streams.reverse()  # type: ignore[attr-defined]
    assert cuda_rates.difference_of_stack(case, wrong, 3) > cuda_rates.TOLERANCE


def test_runs_that_clip_gradients_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="clips gradients"):
        case_of("reverse_increment_random").begin_side_by_side(CPU, 2)


@pytest.mark.parametrize("run", ["reverse_increment_random", "modular_subtraction"])
def test_a_step_with_fixed_memory_is_the_eager_one(run: str) -> None:
    case = case_of(run)
    eager, fixed = case.begin(CPU), case.begin(CPU)
    fixed.capture()
    assert isinstance(fixed.compute, Captured)
    memory = [value.data_ptr() for value in fixed.compute.inputs.values()]
    steps = 20 if run == "reverse_increment_random" else 3  # the 15th batch is smaller
    for _ in range(steps):
        # The learning rate is a tensor in float32 where a schedule changes it: 1e-7 of it is lost.
        assert float(fixed.advance()) == pytest.approx(float(eager.advance()), rel=1e-6)
    assert [value.data_ptr() for value in fixed.compute.inputs.values()] == memory


def test_the_check_of_a_graph_finds_one_that_keeps_its_first_batch() -> None:
    case = case_of(*COPY)
    eager, stale = case.begin(CPU), case.begin(CPU)
    stale.capture()
    assert isinstance(stale.compute, Captured)
    first = stale.compute.inputs
    step = stale.compute
    stale.compute = lambda batch: step(first)
    assert cuda_rates.difference(eager, stale) > cuda_rates.TOLERANCE


def test_a_capture_warms_up_and_leaves_the_training_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    def stream(*_: object) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda _: events.append("wait"))

    @contextmanager
    def enter(*entered: object, stream: object = None) -> Iterator[None]:
        events.append("graph" if isinstance(entered[0], Graph) else "side stream")
        yield

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    for name, fake in (("Stream", stream), ("current_stream", stream), ("stream", enter)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "graph", enter)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", events.append)
    case = case_of(*COPY)
    training, same = case.begin(CPU), case.begin(CPU)
    update = training.update

    def noted(batch: Batch) -> Tensor:
        # PyTorch's deterministic functions may read from the device, which a graph forbids.
        assert not torch.are_deterministic_algorithms_enabled()
        events.append("step")
        return update(batch)

    monkeypatch.setattr(training, "update", noted)
    training.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        training.capture()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    # The last step before the capture must not make the host wait.
    steps = ["step"] * (WARM_UP - 1) + ["error", "step", "default"]
    assert events == ["wait", "side stream", *steps, "graph", "step", "wait"]
    before, after = (dict(each.model.named_parameters()) for each in (same, training))
    assert distance(before, after) == 0
    assert distance(same.optimizer.state(), training.optimizer.state()) == 0
    events.clear()
    training.advance()
    assert events == ["replay"]
    assert isinstance(training.compute, Captured)
    first = same.stream.next()
    assert torch.equal(training.compute.inputs["inputs"], first["inputs"])


class FromHost(TorchDispatchMode):
    """Notes the operations that take a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        if any(x.device.type == "cpu" for x in tensors):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def check_that_a_graph_can_hold(step: Callable[[Batch], object], batch: Batch) -> None:
    """Raise if a warm step reads from the host or from the device."""
    constants = Constants(META)
    with constants:
        step(batch)
        kept = len(constants._kept)
        with FromHost() as host:
            step(batch)  # a value read from the device would raise: there are none
    assert len(constants._kept) == kept, "a constant is made anew at each step"
    assert not host.found, host.found


SINGLE = [(run, variant, None) for run, variant in cuda_report.TIMED]
MANY = [(run, variant, 3) for run, variant in cuda_report.STACKED]


@pytest.mark.parametrize(("run", "variant", "n"), [*SINGLE, *MANY])
def test_a_graph_can_hold_a_step(run: str, variant: str, n: int | None) -> None:
    case = case_of(run, variant, "paper")
    training = case.begin(META) if n is None else case.begin_side_by_side(META, n)
    check_that_a_graph_can_hold(training.update, training.example())


def test_what_a_graph_cannot_hold_is_found() -> None:
    batch = {"x": torch.ones(3, device=META)}
    with pytest.raises(AssertionError, match="add"):
        check_that_a_graph_can_hold(lambda batch: batch["x"] + torch.ones(()), batch)
    with pytest.raises((RuntimeError, NotImplementedError)):
        check_that_a_graph_can_hold(lambda batch: batch["x"].sum().item(), batch)
    numbers = iter(range(9))
    with pytest.raises(AssertionError, match="anew"):
        check_that_a_graph_can_hold(lambda batch: torch.tensor(next(numbers), device=META), batch)


def test_constants_are_made_once_and_have_their_values() -> None:
    x = torch.arange(12.0).view(3, 4)
    with Constants(CPU) as constants:
        found = [x[:, [2, 0]] for _ in range(2)] + [x[[1]]]
        masked = x[[True, False, True]]
        made = [torch.tensor([2, 0]) for _ in range(2)]
    assert torch.equal(found[0], x[:, [2, 0]])
    assert torch.equal(found[1], x[:, [2, 0]])
    assert torch.equal(found[2], x[1:2])
    assert torch.equal(masked, x[[0, 2]])
    assert made[0] is made[1]
    assert made[0].tolist() == [2, 0]
    assert len(constants._kept) == 3
