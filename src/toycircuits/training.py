"""The training loop: steps, schedule, checkpoints, early stop, resume; it knows no task."""

import functools
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import torch
from filelock import FileLock, Timeout
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from tqdm import tqdm

from toycircuits.checkpoints import Trajectory, read_tensors, write_tensors
from toycircuits.config import InputError, Settings

Batch = Mapping[str, Tensor]
EPS = 1e-8  # of Adam, as PyTorch has it by default
RESUME_EVERY = 20.0  # seconds between saves of the resume state; has no influence on any result


class Schedule(Settings):
    """Learning-rate factor: (u + 1) / warmup for u < warmup, then a cosine from `peak` to 0.

    u counts the units (epochs or steps) done. The factor after warm-up is
    peak / 2 * (1 + cos(pi (u - warmup) / (length - warmup))).
    """

    warmup: int = Field(ge=1)
    peak: float = Field(gt=0)

    def factor(self, unit: int, length: int) -> float:
        """Factor of the learning rate during unit `unit` of `length`."""
        if unit < self.warmup:
            return (unit + 1) / self.warmup
        done = (unit - self.warmup) / (length - self.warmup)
        return self.peak / 2 * (1 + math.cos(math.pi * done))


class Stop(Settings):
    """Stop as soon as the logged value of `metric` is at least `at_least`."""

    metric: str
    at_least: float


class TrainSettings(Settings):
    """How to train.

    Attributes:
        batch_size: sequences a step, or None for the full batch.
        unit: what `length`, `log_every` and `checkpoint_every` count.
        compile: make machine code of the loss and its gradient first (`torch.compile`): up to five
            times as fast, after some 20 seconds. It rounds otherwise, so that it is a setting.
        weight_seeds: seeds of the initial weights, one model each.
        batch_seeds: seeds of the order or draw of batches, one a model. None: the generator of the
            weights goes on to give the batches, as after one `torch.manual_seed` for all.
    """

    optimizer: Literal["Adam", "AdamW"]
    lr: float = Field(gt=0, le=1e3)
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0, le=1e3)
    batch_size: int | None = Field(ge=1)
    unit: Literal["epoch", "step"]
    length: int = Field(ge=1, le=100_000_000)
    log_every: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    schedule: Schedule | None
    clip_grad_norm: float | None = Field(gt=0)
    stop: Stop | None
    compile: bool
    weight_seeds: tuple[int, ...] = Field(min_length=1, max_length=1000)
    batch_seeds: tuple[int, ...] | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: found {self.betas}; allowed are two numbers in [0, 1)")
        if self.optimizer == "Adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay: found {self.weight_decay}; Adam takes 0 only, AdamW decays"
            )
        if self.batch_size is None and self.batch_seeds is not None:
            raise ValueError(
                f"batch_seeds: found {self.batch_seeds}; the full batch takes null only"
            )
        if self.batch_seeds is not None and len(self.batch_seeds) != len(self.weight_seeds):
            raise ValueError(
                f"batch_seeds: found {len(self.batch_seeds)} seeds; "
                f"allowed are as many as weight_seeds, {len(self.weight_seeds)}"
            )
        if len(set(self.weight_seeds)) != len(self.weight_seeds):
            raise ValueError(f"weight_seeds: found {self.weight_seeds}; each is allowed once")
        if any(not 0 <= seed < 2**63 for seed in (*self.weight_seeds, *(self.batch_seeds or ()))):
            raise ValueError("weight_seeds, batch_seeds: allowed are numbers from 0 below 2**63")
        if self.schedule is not None and self.schedule.warmup >= self.length:
            raise ValueError(
                f"schedule.warmup: found {self.schedule.warmup}; allowed is less than length"
            )
        return self

    def check(self, data: Any, train: Any) -> None:
        """Raise an `InputError` for a metric to stop at that is not logged."""
        logged = ("step", "lr", "train_loss", *data.metrics)
        if self.stop is not None and self.stop.metric not in logged:
            found, allowed = self.stop.metric, ", ".join(logged)
            raise InputError(f"train.stop.metric: found {found!r}; allowed: {allowed}")

    @property
    def members(self) -> list[tuple[int, int | None]]:
        """(weight seed, batch seed) of each model that is trained."""
        return list(zip(self.weight_seeds, self.batch_seeds or cycle([None]), strict=False))

    def select(self, data: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What a model trained with these settings sees of the data; a task may override it."""
        return data


class BatchStream:
    """An endless stream of batches, made in blocks: an epoch's order, or many steps' fresh draws.

    Its state is small and exact: the generator's state before the present block, and the position
    in it.

    Args:
        draw: makes the next block of batches from the generator.
        generator: consumed by `draw` alone.
        per_epoch: batches an epoch (1 for the full batch and for fresh data).
        redraw: whether a finished block is followed by a new one, or replayed for ever.
    """

    def __init__(
        self,
        draw: Callable[[torch.Generator], Sequence[Batch]],
        generator: torch.Generator,
        per_epoch: int = 1,
        redraw: bool = True,
    ) -> None:
        self.per_epoch = per_epoch
        self._draw, self._generator, self._redraw = draw, generator, redraw
        self._block: Sequence[Batch] = ()
        self._position = 0
        self._before = generator.get_state()

    def next(self) -> Batch:
        """The next batch."""
        if self._position == len(self._block):
            self._position = 0
            if self._redraw or not self._block:
                self._before = self._generator.get_state()
                self._block = self._draw(self._generator)
        batch = self._block[self._position]
        self._position += 1
        return batch

    def state(self) -> tuple[Tensor, int]:
        """What `restore` needs."""
        return self._before, self._position

    def restore(self, before: Tensor, position: int) -> None:
        """Continue as the stream would have whose `state` this was."""
        self._generator.set_state(before)
        self._before, self._position = before, position
        self._block = self._draw(self._generator) if position else ()


def full_batch(batch: Batch) -> BatchStream:
    """The stream that gives `batch` at every step."""
    return BatchStream(lambda _: [batch], torch.Generator(), redraw=False)


def shuffled_batches(
    data: Batch,
    batch_size: int,
    generator: torch.Generator,
    drop_last: bool,
    reshuffle: bool = True,
) -> BatchStream:
    """Batches of `batch_size` rows of `data` in random order; a new order each epoch, or not."""
    n_rows = len(next(iter(data.values())))
    per_epoch = n_rows // batch_size if drop_last else math.ceil(n_rows / batch_size)
    if per_epoch == 0:
        raise InputError(f"train.batch_size: found {batch_size}; allowed is at most {n_rows}")

    def draw(generator: torch.Generator) -> list[Batch]:
        order = torch.randperm(n_rows, generator=generator)
        parts = order.split(batch_size)[:per_epoch]
        return [{name: column[part] for name, column in data.items()} for part in parts]

    return BatchStream(draw, generator, per_epoch, reshuffle)


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


Differentiate: TypeAlias = Callable[[Any, Batch], tuple[Tensor, tuple[Tensor | None, ...]]]


def gradients_of(
    loss: Callable[[Any, Batch], Tensor], parameters: Sequence[Tensor]
) -> Differentiate:
    """From model and batch to the loss, and its gradient for each parameter; None where unused.

    Each gradient is a tensor of its own, and contiguous: fused optimizers take gradients to lie in
    memory as the parameters do, and clipping would clip a shared one twice.
    """

    def differentiate(model: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        value = loss(model, batch)
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        own = [None if g is None else g.clone(memory_format=torch.contiguous_format) for g in found]
        return value.detach(), tuple(own)

    return differentiate


def compiled(differentiate: Differentiate, device: torch.device) -> Differentiate:
    """Loss and gradient as machine code.

    In one graph, backward pass included: it takes half the time of one graph forward and one
    backward, between which everything is saved. Breaks in it would cost more than what is gained
    around them, so that `loss` must not look at values. On CUDA one launch of a graph of kernels.
    """
    torch.compiler.reset()  # what was made for the models before would count against a limit
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # see hooks that are set later
    mode = "reduce-overhead" if device.type == "cuda" else None
    machine_code = torch.compile(differentiate, fullgraph=True, dynamic=False, mode=mode)
    prepared = False

    def run(model: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        nonlocal prepared
        if not prepared:  # what a model works out at its first call must not be in the graph
            differentiate(model, batch)
            prepared = True
        return machine_code(model, batch)

    return run


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works here; it needs a C++ compiler and Python's header files."""
    unheard_of = time.time_ns()  # else it might be found, compiled, in a cache
    try:
        torch.compile(lambda x: x + unheard_of, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds, by what is missing
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"note: training without torch.compile: {reason[0]}", file=sys.stderr)
        return False
    return True


class DivergedError(Exception):
    """The loss is no longer a number."""


class StoppedError(Exception):
    """A signal stopped the training, whose state has been saved.

    Attributes:
        signal: which one.
    """

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped at step {step}")
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


class Optimizer:
    """PyTorch's fused Adam or AdamW, less what its classes look up anew at every step.

    That is a quarter of a millisecond, as much as a quarter of a step of the smallest models. Only
    parameters that got a gradient are changed, as there.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self._update = {"Adam": adam, "AdamW": adamw}[settings.optimizer]
        self._settings = settings
        self.lr = settings.lr
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._slots = [
            {
                "parameter": parameter,
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
                "step": torch.zeros((), device=parameter.device),
            }
            for parameter in self.parameters
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients, and forget these."""
        given = [(s, s["parameter"].grad) for s in self._slots]
        slots, gradients = zip(*[(s, g) for s, g in given if g is not None], strict=True)
        beta1, beta2 = self._settings.betas
        self._update(
            [slot["parameter"] for slot in slots],
            list(gradients),
            [slot["exp_avg"] for slot in slots],
            [slot["exp_avg_sq"] for slot in slots],
            [],
            [slot["step"] for slot in slots],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=self.lr,
            beta1=beta1,
            beta2=beta2,
            eps=EPS,
            weight_decay=self._settings.weight_decay,
        )
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        moments = [{n: x for n, x in slot.items() if n != "parameter"} for slot in self._slots]
        return {f"{i}/{name}": x for i, slot in enumerate(moments) for name, x in slot.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue as the optimizer would have whose `state` this was."""
        for key, own in self.state().items():
            own.copy_(state[key])


@dataclass
class _State:
    """All that changes during training."""

    model: nn.Module
    optimizer: Optimizer
    stream: BatchStream
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
    state = _State(model, Optimizer(model, settings), stream)
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
                raise StoppedError(state.step, signals[0])
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
    if not math.isfinite(loss.item()):
        logged = f", and was {state.rows[-1]['train_loss']:.4g} at step {state.rows[-1]['step']}"
        before = logged if state.rows else ""
        raise DivergedError(f"the loss is {loss.item()} at step {state.step}{before}")


def _reached(stop: Stop | None, row: Mapping[str, float]) -> bool:
    return stop is not None and row[stop.metric] >= stop.at_least
