"""The training loop: steps, schedule, checkpoints, early stop, resume; it knows no task."""

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from toycircuits.core.batches import Batch, BatchStream
from toycircuits.core.checkpoints import Trajectory, read_tensors, write_tensors
from toycircuits.core.config import InputError
from toycircuits.core.gradients import compiled, gradients_of
from toycircuits.core.optimizer import Optimizer
from toycircuits.core.train_settings import Stop, TrainSettings

RESUME_EVERY = 20.0  # seconds between saves of the resume state; has no influence on any result


@dataclass(frozen=True)
class Objective:
    """What a task hands to the loop.

    Attributes:
        stream: the batches.
        loss: model and batch -> scalar.
        evaluate: model -> values to log, without gradient.
    """

    stream: BatchStream
    loss: Callable[[Any, Batch], Tensor]
    evaluate: Callable[[Any], dict[str, float]]


class DivergedError(Exception):
    """The loss is no longer a number; the message names the model, the step and its checkpoints."""


class StoppedError(Exception):
    """A signal stopped the training, whose state has been saved; the message names the model.

    Attributes:
        signal: its number.
    """

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.signal = signal


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The list in which SIGINT and SIGTERM are noted, so that the step at work can end first.

    A second signal interrupts at once. Only a program's main thread can do this; elsewhere
    signals do what they did.
    """
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _State:
    """All that changes during training."""

    model: nn.Module
    optimizer: Optimizer
    stream: BatchStream
    label: str
    trajectory: Trajectory
    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    done: bool = False

    def save(self, path: Path, key: str) -> None:
        before, position = self.stream.state()
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors["stream"] = before
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        rows = [list(row.items()) for row in self.rows]  # pairs: a mapping would come back sorted
        progress = {"step": self.step, "position": position, "rows": rows, "done": self.done}
        write_tensors(path, tensors, {"key": key, **progress})

    def restore(self, path: Path, key: str) -> bool:
        """Take up the state saved at `path` if it was saved under the same key."""
        if not path.exists():
            return False
        try:
            tensors, meta = read_tensors(path)
        except InputError as error:
            print(f"resume state ignored: {error}", file=sys.stderr)
            return False
        if meta.get("key") != key:
            print(f"resume state ignored: {path} belongs to another training", file=sys.stderr)
            return False
        moments = {k[10:]: v for k, v in tensors.items() if k.startswith("optimizer/")}
        model_state = {k[6:]: v for k, v in tensors.items() if k.startswith("model/")}
        self.model.load_state_dict(model_state)
        self.optimizer.restore(moments)
        self.stream.restore(tensors["stream"], meta["position"])
        self.step, self.done = meta["step"], meta["done"]
        self.rows = [dict(row) for row in meta["rows"]]
        print(f"resuming at step {self.step}", file=sys.stderr)
        return True


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Let one process at a time work in `folder`.

    DVC's own locks do not do it: a killed `dvc repro` leaves its stage running.

    Raises:
        InputError: another process does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"{folder}: another process trains this run; stop it first, its state is kept"
        ) from None


def train(
    model: nn.Module,
    objective: Objective,
    settings: TrainSettings,
    folder: Path,
    key: str,
    metadata: Mapping[str, Any],
    label: str = "train",
) -> list[dict[str, float]]:
    """Train `model` in place; leave its checkpoints in `folder / "trajectory"`.

    A training that was killed continues from the state it left in `folder`, and ends with the
    bytes it would have ended with, provided `key` is the same.

    Args:
        key: names all that the result depends on; a state saved under another key is not used.
        metadata: stored in every checkpoint.
        label: what the progress bar and messages call the model.

    Returns:
        One row a log point: `step` (updates done), `lr`, `train_loss` (of the batch of that step,
        before its update) and what `objective.evaluate` gives.

    Raises:
        DivergedError: the loss is not finite; checkpoints written before stay in `folder`.
        StoppedError: SIGINT or SIGTERM came; the state is saved.
    """
    stream = objective.stream
    per_unit = stream.per_epoch if settings.unit == "epoch" else 1
    last = settings.length * per_unit
    trajectory, resume_path = Trajectory(folder / "trajectory"), folder / "resume.safetensors"
    state = _State(model, Optimizer(model, settings), stream, label, trajectory)
    parameters = state.optimizer.parameters
    differentiate = gradients_of(objective.loss, parameters)
    if settings.compile:
        differentiate = compiled(differentiate, parameters[0].device)
    if not state.restore(resume_path, key):
        shutil.rmtree(trajectory.folder, ignore_errors=True)
    if state.done:
        return state.rows
    bar = tqdm(
        total=last,
        initial=state.step,
        desc=label,
        unit="step",
        # Whoever reads a log while it grows may ask for more lines, by tqdm's own variable.
        mininterval=float(os.environ.get("TQDM_MININTERVAL", 0.5 if sys.stderr.isatty() else 30)),
    )
    saved = time.monotonic()
    with bar, _signals() as signals:
        while True:
            if signals or time.monotonic() - saved > RESUME_EVERY:
                state.save(resume_path, key)
                saved = time.monotonic()
            if signals:
                text = f"{label}: stopped at step {state.step}"
                raise StoppedError(f"{text}; the same command continues from there", signals[0])
            unit, within = divmod(state.step, per_unit)
            if settings.schedule is not None:
                factor = settings.schedule.factor(min(unit, settings.length - 1), settings.length)
                state.optimizer.lr = settings.lr * factor
            at_end = state.step == last
            loss, gradients = differentiate(model, stream.next())
            if within == 0 and (unit % settings.log_every == 0 or at_end):
                row = _log(state, loss, objective)
                at_end |= _reached(settings.stop, row)
                bar.set_postfix(loss=f"{row['train_loss']:.3g}", refresh=False)
            if within == 0 and (unit % settings.checkpoint_every == 0 or at_end):
                _check_finite(loss, state)
                trajectory.save(state.step, model.state_dict(), metadata)
            if at_end:
                state.done = True
                state.save(resume_path, key)
                return state.rows
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if settings.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameters, settings.clip_grad_norm)
            state.optimizer.step()
            state.step += 1
            bar.update()


def _log(state: _State, loss: Tensor, objective: Objective) -> dict[str, float]:
    _check_finite(loss, state)
    with torch.no_grad():
        values = objective.evaluate(state.model)
    row = {"step": state.step, "lr": state.optimizer.lr, "train_loss": loss.item(), **values}
    state.rows.append(row)
    return row


def _check_finite(loss: Tensor, state: _State) -> None:
    if math.isfinite(loss.item()):
        return
    text = f"{state.label}: the loss is {loss.item()} at step {state.step}"
    if state.rows:
        row = state.rows[-1]
        text += f", and was {row['train_loss']:.4g} at step {row['step']}"
    raise DivergedError(f"{text}; the checkpoints before it are in {state.trajectory.folder}")


def _reached(stop: Stop | None, row: Mapping[str, float]) -> bool:
    return stop is not None and row[stop.metric] >= stop.at_least
