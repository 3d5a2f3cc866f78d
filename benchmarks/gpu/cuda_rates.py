"""Steps per second: one model and many, eager, captured as a graph, and compiled."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cuda_agreement import CPU
from cuda_machine import (
    NONE,
    OUT_OF_TIME,
    Deadline,
    attempt,
    peak_memory,
    reset_memory,
    synchronize,
)
from cuda_trainings import WARM_UP, Case, Training

from toycircuits.core.gradients import compiled

CHECKED = 10  # steps whose losses two ways of computing must share
# Both ways compute in float32 from the same weights, with kernels that may sum in other orders. On
# a CPU the losses of modular_subtraction, whose rounding errors grow fastest, are 2e-5 apart after
# 15 steps. Other seeds or batches would be a thousandth apart or more.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Clock:
    """How steps are timed.

    Attributes:
        rounds: the median is over so many.
        seconds: of a round, about.
    """

    rounds: int = 5
    seconds: float = 0.3

    def rate(self, step: Callable[[], object], device: torch.device) -> float:
        """Steps per second: the median of the rounds, after steps that warm up."""
        _timed(step, WARM_UP, device)  # the first steps prepare, and may compile
        n = 1
        while (seconds := _timed(step, n, device)) < self.seconds / 4:
            n *= 2
        n = max(1, round(n * self.seconds / seconds))
        return n / statistics.median(_timed(step, n, device) for _ in range(self.rounds))


def _timed(step: Callable[[], object], n: int, device: torch.device) -> float:
    """Seconds that `n` steps take, until the device has done them."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(n):
        step()
    synchronize(device)
    return time.perf_counter() - start


def difference(one: Training, other: Training) -> float:
    """The largest relative difference of the losses of the next `CHECKED` steps."""
    pairs = [(float(one.advance()), float(other.advance())) for _ in range(CHECKED)]
    return max(abs(a - b) / abs(a) for a, b in pairs)


@dataclass
class Single:
    """Steps per second of one model; a text where there is no number.

    Attributes:
        difference: of the losses of graph and eager steps.
        cpu: eager, with one thread of the CPU of the same machine.
    """

    eager: float | str = OUT_OF_TIME
    graph: float | str = OUT_OF_TIME
    difference: float | str = OUT_OF_TIME
    cpu: float | str = OUT_OF_TIME


def measure_single(
    case: Case, device: torch.device, clock: Clock, row: Single, deadline: Deadline
) -> None:
    """Fill in `row`."""
    row.eager = attempt(lambda: clock.rate(case.begin(device).advance, device), deadline)
    row.cpu = attempt(lambda: clock.rate(case.begin(CPU).advance, CPU), deadline)
    if device.type != "cuda":
        row.graph = row.difference = NONE
        return
    row.difference = attempt(
        lambda: difference(case.begin(device), captured(case, device)), deadline
    )
    row.graph = attempt(lambda: clock.rate(captured(case, device).advance, device), deadline)


def captured(case: Case, device: torch.device) -> Training:
    """A training of one model that replays a graph."""
    training = case.begin(device)
    training.capture()
    return training


def measure_compiled(case: Case, device: torch.device, clock: Clock) -> float | str:
    """Steps per second with loss and gradient compiled, as the project compiles them."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):  # `compiled` sets it
        return "needs a newer PyTorch"
    training = case.begin(device)
    training.differentiate = compiled(training.differentiate, device)
    return clock.rate(training.advance, device)


@dataclass
class Many:
    """Steps per second of many models side by side; a text where there is no number.

    Attributes:
        n: models.
        chunk: models that fit into memory at once; the others would follow after them.
        eager, graph: model-steps per second, of all models together.
        memory: the peak in GB.
        difference: of the losses from those of trainings of their own, of the first and the last
            model.
    """

    n: int
    chunk: int | str = OUT_OF_TIME
    eager: float | str = OUT_OF_TIME
    graph: float | str = OUT_OF_TIME
    memory: float | str = OUT_OF_TIME
    difference: float | str = OUT_OF_TIME


def measure_many(case: Case, device: torch.device, clock: Clock, row: Many) -> None:
    """Fill in `row`; where memory is short, with half as many models, and so on."""
    n = row.n
    while True:
        try:
            _measure_chunk(case, device, clock, row, n)
            return
        except torch.cuda.OutOfMemoryError:
            if n == 1:
                raise
        n //= 2  # after the handler, whose traceback holds the tensors


def _measure_chunk(case: Case, device: torch.device, clock: Clock, row: Many, n: int) -> None:
    reset_memory(device)
    row.chunk, training = n, case.begin_side_by_side(device, n)
    row.difference = difference_of_stack(case, training, n)
    row.eager = n * clock.rate(training.advance, device)
    row.memory = peak_memory(device) or NONE
    if device.type != "cuda":
        row.graph = NONE
        return
    reset_memory(device)
    training.capture()
    row.graph = n * clock.rate(training.advance, device)
    row.memory = peak_memory(device) or NONE


def difference_of_stack(case: Case, stack: Training, n: int) -> float:
    """The largest difference of the losses of the first and the last model from those alone.

    Args:
        stack: the training of all `n`, before its first step; it takes `CHECKED` steps.
    """
    pairs = case.seed_pairs(n)
    alone = {k: case.begin(stack.device, pairs[k]) for k in (0, n - 1)}
    largest = 0.0
    for _ in range(CHECKED):
        losses = stack.losses(stack.example())
        stack.advance()
        for k, training in alone.items():
            loss = float(training.advance())
            largest = max(largest, abs(float(losses[k]) - loss) / abs(loss))
    return largest


def within(value: float | str) -> bool:
    """Whether a difference of losses is within its tolerance; True where there is none."""
    return isinstance(value, str) or value <= TOLERANCE
