"""Many seeds of modular_subtraction trained side by side: their curves, and when they grok."""

import csv
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import torch
from cuda_machine import Deadline
from cuda_rates import Clock
from cuda_trainings import Case, Training

from toycircuits.core.batches import Batch
from toycircuits.core.config import find_run
from toycircuits.experiments.modular_arithmetic import task
from toycircuits.experiments.modular_arithmetic.metrics.phases import find_phases

RUN = "modular_subtraction"
COLUMNS = ("seed", "epoch", "train_loss", "test_loss")
RULES = ("memorised_below", "grokked_below", "clean_ratio")  # settings of the section `measure`
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
TRIED = 64  # models on which the rate is measured; with more, a GPU is hardly faster per model
MOST = 256  # seeds: they take 10 to 20 GB, by the sizes of their activations
USED = 0.85  # share of the time left that the chosen seeds should take


@dataclass(frozen=True)
class Curves:
    """What the trainings have given.

    Attributes:
        seeds: one for each model.
        epochs: that were taken.
        planned: that the settings ask for.
        table: `COLUMNS`, one row for each seed and logged epoch.
        why: what ended the trainings.
    """

    seeds: Sequence[int]
    epochs: int
    planned: int
    table: pd.DataFrame
    why: str


def train_many(
    case: Case, device: torch.device, deadline: Deadline, n: int | None, file: Path, most: int
) -> Curves:
    """Train many seeds until their end, the deadline, or SIGTERM or SIGINT.

    Every logged row is in `file` at once, so that even a killed process leaves what it had.

    Args:
        n: how many seeds; None for as many as the time allows.
        file: takes the curves as CSV.
        most: epochs at most.
    """
    planned = min(case.train.length, most)
    n = n or seeds_in_time(case, device, deadline, planned)
    training = case.begin_side_by_side(device, n)
    if device.type == "cuda":
        training.capture()
    batches = [task.split(case.tensors_on(device), name) for name in ("train", "test")]
    seeds = [seed for seed, _ in case.seed_pairs(n)]
    rows: list[tuple[int, int, float, float]] = []
    why = "all epochs taken"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream, _signals() as signals:
        _write(stream, [COLUMNS])
        while True:
            if training.taken % case.train.log_every == 0 or training.taken == planned:
                rows += _logged(training, batches, seeds, stream)
            if training.taken == planned:
                break
            if signals or (training.taken % case.train.log_every == 0 and deadline.passed):
                why = f"signal {signals[0]}" if signals else "out of time"
                break
            training.advance()
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Curves(seeds, training.taken, planned, table, why)


def seeds_in_time(case: Case, device: torch.device, deadline: Deadline, epochs: int) -> int:
    """How many seeds can be trained together in the time left, at least one and at most `MOST`.

    With twice as many models, a step of a busy GPU takes twice as long.
    """
    training = case.begin_side_by_side(device, TRIED)
    if device.type == "cuda":
        training.capture()
    rate = TRIED * Clock(rounds=3).rate(training.advance, device)
    return min(MOST, max(1, math.floor(rate * deadline.left * USED / epochs)))


def _logged(
    training: Training, batches: Sequence[Batch], seeds: Sequence[int], stream: TextIO
) -> list[tuple[int, int, float, float]]:
    """The rows of the present epoch, which are also written to `stream`."""
    train, test = (training.losses(batch).double().cpu() for batch in batches)
    epochs = [training.taken] * len(seeds)
    rows = [*zip(seeds, epochs, train.tolist(), test.tolist(), strict=True)]
    _write(stream, [(s, e, f"{a:.9g}", f"{b:.9g}") for s, e, a, b in rows])
    return rows


def _write(stream: TextIO, rows: Sequence[Sequence[object]]) -> None:
    csv.writer(stream, lineterminator="\n").writerows(rows)
    stream.flush()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that collects SIGTERM and SIGINT, which otherwise do nothing meanwhile."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rules_of(params: Mapping[str, Any]) -> dict[str, float]:
    """The rules by which the project says when a network has memorised and grokked."""
    values, _ = find_run(params, RUN).values("measure")
    return {name: values[name] for name in RULES}


def phases_of(curves: Curves, modulus: int, rules: Mapping[str, float]) -> pd.DataFrame:
    """One row for each seed: the epochs at which its phases end, NaN for what has not happened."""
    rows = []
    for seed, table in curves.table.groupby("seed", sort=False):
        # An epoch is one step.
        found = find_phases(table.rename(columns={"epoch": "step"}), math.log(modulus), **rules)
        last = table.iloc[-1]
        if found["memorisation_end"] == last["epoch"]:  # the test loss may still rise
            found["memorisation_end"] = math.nan
        losses = {name: float(last[name]) for name in ("train_loss", "test_loss")}
        names = {name: name.replace("_step", "_epoch") for name in found}
        rows.append({"seed": seed, **{names[k]: v for k, v in found.items()}, **losses})
    return pd.DataFrame(rows)


def quantile(epochs: Sequence[float], q: float) -> float:
    """The smallest epoch by which a share `q` of all seeds is done; infinity if fewer are.

    Args:
        epochs: one for each seed; NaN for a seed that is not done.

    >>> quantile([100.0, 300.0, float("nan"), 200.0], 0.5)
    200.0
    >>> quantile([100.0, 300.0, float("nan"), 200.0], 0.9)
    inf
    """
    ordered = np.sort(np.nan_to_num(np.asarray(epochs, dtype=float), nan=math.inf))
    return float(ordered[max(0, math.ceil(q * len(ordered)) - 1)])
