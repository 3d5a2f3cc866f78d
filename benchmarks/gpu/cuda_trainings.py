"""Trainings on any device: one model or many side by side, eager or captured as a CUDA graph.

Models, losses, batches, gradients and the optimizer are the project's own. Data and weights are
drawn on the CPU and then moved, so that a seed means the same on every device.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from toycircuits.core.batches import Batch
from toycircuits.core.config import find_run
from toycircuits.core.generators import seeded
from toycircuits.core.gradients import gradients_of
from toycircuits.core.optimizer import Optimizer
from toycircuits.core.slices import Model, Task, load_model, load_task
from toycircuits.core.train_run import read_settings
from toycircuits.core.train_settings import TrainSettings

WARM_UP = 3  # steps before a capture: libraries allocate their memory in the first ones


class Stream(Protocol):
    """What gives the batches of a training."""

    per_epoch: int

    def next(self) -> Batch:
        """The next batch."""


@dataclass
class Training:
    """A training in progress, which takes the same steps as `toycircuits.core.training`.

    Attributes:
        loss: model and batch -> scalar.
        taken: steps taken.
        compute: takes a step on a batch and returns the loss before it. By default `update`;
            `capture` puts a graph in its place.
    """

    model: nn.Module
    stream: Stream
    loss: Callable[[Any, Batch], Tensor]
    train: TrainSettings
    taken: int = 0
    compute: Callable[[Batch], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.model, self.train)
        self.parameters = self.optimizer.parameters
        self.device = self.parameters[0].device
        self.differentiate = gradients_of(self.loss, self.parameters)
        self.compute = self.update
        self._rate: Tensor | None = None  # where a graph reads the learning rate

    def update(self, batch: Batch) -> Tensor:
        """Compute loss and gradient on `batch`, and update the weights; the loss before that."""
        loss, gradients = self.differentiate(self.model, batch)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.train.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.train.clip_grad_norm)
        self.optimizer.step()
        return loss

    def advance(self) -> Tensor:
        """Take the next step; the loss of its batch before the update, a scalar on the device."""
        if self.train.schedule is not None:
            unit = self.taken // (self.stream.per_epoch if self.train.unit == "epoch" else 1)
            length = self.train.length
            factor = self.train.schedule.factor(min(unit, length - 1), length)
            self._set_learning_rate(self.train.lr * factor)
        self.taken += 1
        return self.compute(self.stream.next())

    def _set_learning_rate(self, rate: float) -> None:
        if self._rate is None:
            self.optimizer.lr = rate
        else:
            self._rate.fill_(rate)

    def capture(self) -> None:
        """Take all later steps by replaying a graph; weights and optimizer stay as they are."""
        if self.train.schedule is not None:
            self._rate = torch.tensor(self.train.lr, device=self.device)
            self.optimizer.lr = self._rate  # type: ignore[assignment]  # PyTorch takes either
        weights = [parameter.detach().clone() for parameter in self.parameters]
        moments = {name: value.clone() for name, value in self.optimizer.state().items()}
        self.compute = Captured(self.update, self.example(), self.device)
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)
        self.optimizer.restore(moments)

    @torch.no_grad()
    def losses(self, batch: Batch) -> Tensor:
        """The loss of each model on `batch`, [model], where the model is a `Stack`."""
        assert isinstance(self.model, Stack)
        return self.model.losses(batch)

    def example(self) -> Batch:
        """A batch of the shapes of this training, which the training itself does not lose."""
        return self.stream.peek() if isinstance(self.stream, SideBySide) else _peek(self.stream)


def _peek(stream: Any) -> Batch:
    """The next batch of a stream, which will give it again."""
    batch = stream.next()
    before, position = stream.state()
    stream.restore(before, position - 1)
    return batch


class Captured:
    """A step captured as a CUDA graph. On a CPU, the same step with the same fixed memory.

    A graph reads its inputs from fixed memory, so each batch is copied there first. A batch of
    another shape, such as the last one of an epoch, takes the step without the graph.

    Args:
        step: batch -> scalar. It runs `WARM_UP` times before it is captured.
        batch: a batch of the shapes that the graph is for.
    """

    def __init__(self, step: Callable[[Batch], Tensor], batch: Batch, device: torch.device) -> None:
        self._step = step
        self.inputs = {name: value.clone() for name, value in batch.items()}
        if device.type != "cuda":
            self._replay: Callable[[], object] = lambda: self.loss.copy_(step(self.inputs))
            self.loss = torch.zeros((), dtype=torch.float64, device=device)
            return
        self._constants = Constants(device)
        gc.collect()  # what is left of earlier steps remembers their stream
        side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        side.wait_stream(main)
        graph = torch.cuda.CUDAGraph()
        with _fastest_algorithms(), self._constants, torch.cuda.stream(side):
            for _ in range(WARM_UP - 1):
                step(self.inputs)
            with _no_waiting():
                step(self.inputs)
            # On the stream of the warm-up, because PyTorch may remember it for the parameters.
            with torch.cuda.graph(graph, stream=side):
                self.loss = step(self.inputs)
        main.wait_stream(side)
        self._replay = graph.replay

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step on `batch`; the next call overwrites the loss that this one returns."""
        if any(batch[name].shape != value.shape for name, value in self.inputs.items()):
            return self._step(batch)
        for name, value in self.inputs.items():
            value.copy_(batch[name])
        self._replay()
        return self.loss


@contextmanager
def _fastest_algorithms() -> Iterator[None]:
    """Turn PyTorch's deterministic mode off in the body.

    In this mode, the gradient of `gather` is computed by a function that checks its indices on the
    host, which a graph forbids. Our indices are distinct there, so the result is the same.
    """
    is_on, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=warns)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise a `RuntimeError` where the body makes the host wait for the device.

    A capture would fail there too. But after a failed capture, PyTorch 2.11 can free no memory and
    capture no other graph (https://github.com/pytorch/pytorch/pull/180395).
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Constants(TorchFunctionMode):
    """Keeps on the device what PyTorch would make from Python numbers at each call.

    `x[:, [0, 2]]` and `torch.tensor([0, 2], device="cuda")` copy numbers from the host, which a
    graph cannot do while it is captured. Inside this mode they copy once, in the warm-up.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._kept: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, with the numbers among its arguments replaced by tensors kept here."""
        kwargs = kwargs or {}
        if func is torch.tensor:
            key = f"{args} {kwargs}"
            if key not in self._kept:
                self._kept[key] = func(*args, **kwargs)
            return self._kept[key]
        if func is Tensor.__getitem__:
            x, index = args
            parts = index if isinstance(index, tuple) else (index,)
            args = (x, tuple(self._on_device(part) for part in parts))
        return func(*args, **kwargs)

    def _on_device(self, part: Any) -> Any:
        if not (isinstance(part, list) and all(type(number) is int for number in part)):
            return part
        key = f"index {part}"
        if key not in self._kept:
            self._kept[key] = torch.tensor(part, dtype=torch.int64, device=self._device)
        return self._kept[key]


@dataclass(frozen=True)
class Case:
    """A run, and one of its variants, at one scale.

    Attributes:
        run, variant: their names in params.yaml; the variant is empty where the run has none.
        data, model: settings of the task and of the model.
        tensors: the data of the task, on the CPU.
    """

    run: str
    variant: str
    task: Task
    architecture: Model
    data: Any
    train: TrainSettings
    model: Any
    tensors: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """Run and variant."""
        return f"{self.run} {self.variant}".strip()

    def seed_pairs(self, n: int) -> list[tuple[int, int | None]]:
        """`n` pairs of seeds, of weights and of batches, counted up from those of the settings."""
        weights, batches = self.train.seed_pairs[0]
        return [(weights + k, None if batches is None else batches + k) for k in range(n)]

    def begin(
        self,
        device: torch.device,
        seeds: tuple[int, int | None] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Training:
        """A training of one model from its start, by default of the first seeds."""
        weight_seed, batch_seed = self.seed_pairs(1)[0] if seeds is None else seeds
        generator = self.train.weight_generator(weight_seed)
        model: nn.Module = self.architecture.build(self.model, self.data, generator)
        model = model.to(device=device, dtype=dtype)
        order = generator if batch_seed is None else seeded(batch_seed)
        tensors = self.tensors_on(device, dtype)
        stream: Stream = self.task.batches(tensors, self.data, self.train, order)
        if dtype != torch.float32:
            stream = InPrecision(stream, dtype)
        return Training(model, stream, self.task.loss, self.train)

    def tensors_on(
        self, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """The data on `device`, its floating-point numbers in `dtype`."""
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        return dict(in_precision(moved, dtype))

    def begin_side_by_side(self, device: torch.device, n: int) -> "Training":
        """A training of `n` models at once, each with its own weights and order of batches.

        Raises:
            ValueError: the settings clip gradients, which is not done here model by model.
        """
        if self.train.clip_grad_norm is not None:
            raise ValueError(f"{self.run}: clips gradients; allowed: runs that do not")
        cpu, shared = torch.device("cpu"), self.train.batch_size is None
        # Made and stacked on the CPU, and moved once: a GPU would take seconds for the small parts.
        alone = [self.begin(cpu, seeds) for seeds in self.seed_pairs(n)]
        stack = Stack([training.model for training in alone], self.task.loss, shared, device)
        repeats = getattr(self.train, "draw", None) == "same_order"
        streams = [training.stream for training in alone]
        stream = self.begin(device).stream if shared else SideBySide(streams, repeats, device)
        return Training(stack, stream, lambda stack, batch: stack.losses(batch).sum(), self.train)


def read_case(params: Mapping[str, Any], run: str, variant: str = "") -> Case:
    """The case of a run at the scale that `params` chooses.

    Raises:
        InputError: a setting is wrong.
    """
    found = find_run(params, run)
    settings = read_settings(found)
    task, architecture = load_task(found.entry.slice), load_model(found.entry.slice)
    tensors = task.generate(settings.data, seeded(settings.data.seed))
    model = settings.models[variant]
    selected = settings.train.select(tensors)
    return Case(run, variant, task, architecture, settings.data, settings.train, model, selected)


def in_precision(batch: Batch, dtype: torch.dtype) -> Batch:
    """`batch` with its floating-point numbers in `dtype`."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}


class InPrecision:
    """A stream of batches in another precision: the numbers that `stream` draws, converted."""

    def __init__(self, stream: Stream, dtype: torch.dtype) -> None:
        self.per_epoch, self._stream, self._dtype = stream.per_epoch, stream, dtype

    def next(self) -> Batch:
        """The next batch."""
        return in_precision(self._stream.next(), self._dtype)


class SideBySide:
    """The batches of many trainings, stacked along a new first axis [model, ...].

    An epoch is stacked at once: to stack 256 small tensors takes longer than a step.

    Args:
        streams: one for each model; their batches are on the CPU.
        repeats: whether every epoch has the batches of the first.
        device: where the stacked batches go.
    """

    def __init__(self, streams: Sequence[Stream], repeats: bool, device: torch.device) -> None:
        self.per_epoch, self._streams, self._repeats = streams[0].per_epoch, streams, repeats
        self._device = device
        self._block: list[Batch] = []
        self._position = 0

    def next(self) -> Batch:
        """The next batch of every training."""
        batch = self.peek()
        self._position += 1
        return batch

    def peek(self) -> Batch:
        """The batch that `next` will give."""
        if self._position == len(self._block):
            self._position = 0
            if not (self._block and self._repeats):
                self._block = [self._stacked() for _ in range(self.per_epoch)]
        return self._block[self._position]

    def _stacked(self) -> Batch:
        batches = [stream.next() for stream in self._streams]
        columns = {name: [batch[name] for batch in batches] for name in batches[0]}
        return {name: torch.stack(column).to(self._device) for name, column in columns.items()}


class _WithLoss(nn.Module):
    """A model whose forward pass is its loss, for `functional_call`."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        """The loss on `batch`, a scalar."""
        return self.loss(self.model, batch)


class Stack(nn.Module):
    """Models of one shape as one module: each trained parameter is stacked to [model, ...].

    The gradient of the sum of all losses has the gradient of each model in its place, and Adam
    works on each number alone. So one training of the stack is a training of each model. A
    parameter that a loss does not use gets a gradient of zero here and none in a training of its
    own. Both leave it as it is: it is a bias that starts at zero.

    Args:
        models: on the CPU. The first moves to `device` too.
        shared: whether all models get the same batch; otherwise a batch has the axis `model` first.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        loss: Callable[[Any, Batch], Tensor],
        shared: bool,
        device: torch.device,
    ) -> None:
        super().__init__()
        named = [dict(model.named_parameters()) for model in models]
        self.names = [name for name, value in named[0].items() if value.requires_grad]
        self.values = nn.ParameterList(
            nn.Parameter(torch.stack([each[name].detach() for each in named]).to(device))
            for name in self.names
        )
        # In a tuple, so that its parameters are not listed. It has the frozen ones, which are equal
        # in all models.
        self._first = (_WithLoss(models[0], loss).to(device),)
        self._shared = shared

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each model, [model]."""

        def one(values: dict[str, Tensor], batch: Batch) -> Tensor:
            return functional_call(self._first[0], values, (batch,))

        pairs = zip(self.names, self.values, strict=True)
        stacked = {f"model.{name}": value for name, value in pairs}
        in_dims = (0, None if self._shared else 0)
        result: Tensor = vmap(one, in_dims=in_dims)(stacked, batch)
        return result

    def state_of(self, k: int) -> dict[str, Tensor]:
        """The trained parameters of model `k`, by name."""
        pairs = zip(self.names, self.values, strict=True)
        return {name: value.detach()[k] for name, value in pairs}
