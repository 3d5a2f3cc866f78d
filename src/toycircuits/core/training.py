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

CONTINUE = "the same command continues from there"
RESUME_EVERY = 20.0  # seconds between saves of the resume state; has no influence on any result


@dataclass(frozen=True)
class Objective:
    """What the loop needs of a task.

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
    """A list that collects SIGINT and SIGTERM, so that the present step can end first.

    A second signal interrupts at once. Only a program's main thread can set handlers; in other
    threads signals keep their effect and the list stays empty.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Let one process at a time work in `folder`.

    DVC's own locks do not ensure this: a killed `dvc repro` leaves its stage running.

    Raises:
        InputError: another process works there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"{folder}: another process trains this run; stop it first (it saves its state)"
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
        One row for each log point: `step` (updates done), `lr`, `train_loss` (of the batch of that
        step, before its update) and what `objective.evaluate` gives.

    Raises:
        DivergedError: the loss is not finite; checkpoints written before stay in `folder`.
        StoppedError: SIGINT or SIGTERM came; the state is saved.
        InputError: the saved state has this key, but is not one of this training.
    """
    training = _Training(model, objective, settings, folder, key, metadata, label)
    training.restore_or_clear()
    saved = time.monotonic()
    with training.progress_bar() as bar, _signals() as signals:
        while not training.done:
            if signals or time.monotonic() - saved > RESUME_EVERY:
                training.save()
                saved = time.monotonic()
            if signals:
                text = f"{label}: stopped at step {training.step}; {CONTINUE}"
                raise StoppedError(text, signals[0])
            training.advance(bar)
        training.save()
        if signals:  # it came during the last step, and the next training must not start
            raise StoppedError(f"{label}: stopped at its end; {CONTINUE}", signals[0])
    return training.rows


@dataclass
class _Training:
    """A training in progress: what it is given, and all that changes while it runs."""

    model: nn.Module
    objective: Objective
    settings: TrainSettings
    folder: Path
    key: str
    metadata: Mapping[str, Any]
    label: str
    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        self.stream = self.objective.stream
        self.trajectory = Trajectory(self.folder / "trajectory")
        self.resume_file = self.folder / "resume.safetensors"
        self.optimizer = Optimizer(self.model, self.settings)
        self.parameters = self.optimizer.parameters
        self.steps_per_unit = self.stream.per_epoch if self.settings.unit == "epoch" else 1
        self.last_step = self.settings.length * self.steps_per_unit
        self.differentiate = gradients_of(self.objective.loss, self.parameters)
        if self.settings.compile:
            self.differentiate = compiled(self.differentiate, self.parameters[0].device)

    def progress_bar(self) -> "tqdm[Any]":
        """A bar over the steps, from the present one."""
        return tqdm(
            total=self.last_step,
            initial=self.step,
            desc=self.label,
            unit="step",
            disable=self.done,
            # A program that follows the log can ask for more lines with tqdm's own variable.
            mininterval=float(
                os.environ.get("TQDM_MININTERVAL", 0.5 if sys.stderr.isatty() else 30)
            ),
        )

    def advance(self, bar: "tqdm[Any]") -> None:
        """Take one step, and before its update log and save what is due; at the end, stop."""
        unit, within = divmod(self.step, self.steps_per_unit)
        self._set_learning_rate(unit)
        loss, gradients = self.differentiate(self.model, self.stream.next())
        if within == 0:
            self._record(loss, unit, bar)
        if self.done:
            return
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.settings.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_grad_norm)
        self.optimizer.step()
        self.step += 1
        bar.update()

    def _set_learning_rate(self, unit: int) -> None:
        if self.settings.schedule is not None:
            length = self.settings.length
            factor = self.settings.schedule.factor(min(unit, length - 1), length)
            self.optimizer.lr = self.settings.lr * factor

    def _record(self, loss: Tensor, unit: int, bar: "tqdm[Any]") -> None:
        """At the start of a unit: log, decide whether to stop, save a checkpoint."""
        self.done = self.step == self.last_step
        if unit % self.settings.log_every == 0 or self.done:
            self._check_finite(loss)
            with torch.no_grad():
                values = self.objective.evaluate(self.model)
            row = {"step": self.step, "lr": self.optimizer.lr, "train_loss": loss.item(), **values}
            self.rows.append(row)
            self.done |= _reached(self.settings.stop, row)
            bar.set_postfix(loss=f"{row['train_loss']:.3g}", refresh=False)
        if unit % self.settings.checkpoint_every == 0 or self.done:
            self._check_finite(loss)
            self.trajectory.save(self.step, trained_parameters(self.model), self.metadata)

    def _check_finite(self, loss: Tensor) -> None:
        if math.isfinite(loss.item()):
            return
        text = f"{self.label}: the loss is {loss.item()} at step {self.step}"
        if self.rows:
            row = self.rows[-1]
            text += f", and was {row['train_loss']:.4g} at step {row['step']}"
        hint = "try a smaller train.lr"
        folder = self.trajectory.folder
        raise DivergedError(f"{text}; the checkpoints before it are in {folder}; {hint}")

    def save(self) -> None:
        """Save the state, from which `restore_or_clear` continues."""
        before, position = self.stream.state()
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors["stream"] = before
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        rows = [list(row.items()) for row in self.rows]  # pairs: a mapping would come back sorted
        progress = {"step": self.step, "position": position, "rows": rows, "done": self.done}
        write_tensors(self.resume_file, tensors, {"key": self.key, **progress})

    def restore_or_clear(self) -> None:
        """Take up the state saved under the same key; without one, remove old checkpoints."""
        if not self._restore():
            shutil.rmtree(self.trajectory.folder, ignore_errors=True)

    def _restore(self) -> bool:
        if not self.resume_file.exists():
            return False
        try:
            tensors, progress = read_tensors(self.resume_file)
        except InputError as error:
            print(f"resume state ignored: {error}", file=sys.stderr)
            return False
        if progress.get("key") != self.key:
            text = f"{self.resume_file} belongs to another training"
            print(f"resume state ignored: {text}", file=sys.stderr)
            return False
        try:
            self.model.load_state_dict(_under("model/", tensors))
            self.optimizer.restore(_under("optimizer/", tensors))
            self.stream.restore(tensors["stream"], progress["position"])
            self.step, self.done = progress["step"], progress["done"]
            self.rows = [dict(row) for row in progress["rows"]]
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            text = "its key is that of this training, and its content is not; remove it"
            raise InputError(f"{self.resume_file}: {text} ({reason})") from None
        print(f"resuming at step {self.step}", file=sys.stderr)
        return True


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that a training changes; the settings of the model say what the others are."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _reached(stop: Stop | None, row: Mapping[str, float]) -> bool:
    return stop is not None and row[stop.metric] >= stop.at_least
