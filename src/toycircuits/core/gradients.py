"""Loss and gradient of a model on a batch, eager or compiled as one graph."""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from toycircuits.core.batches import Batch

Differentiate: TypeAlias = Callable[[Any, Batch], tuple[Tensor, tuple[Tensor | None, ...]]]


def gradients_of(
    loss: Callable[[Any, Batch], Tensor], parameters: Sequence[Tensor]
) -> Differentiate:
    """A function from model and batch to the loss and its gradient for each of `parameters`.

    The gradient of an unused parameter is None. Gradients share no memory and are contiguous:
    fused optimizers assume that a gradient lies in memory as its parameter does, and clipping would
    clip shared memory twice.
    """

    def differentiate(model: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        value = loss(model, batch)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        copies = [g if g is None else _contiguous_copy(g) for g in gradients]
        return value.detach(), tuple(copies)

    return differentiate


def _contiguous_copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def compiled(differentiate: Differentiate, device: torch.device) -> Differentiate:
    """`differentiate` compiled to machine code, as one graph that includes the backward pass.

    One graph takes half the time of a forward and a backward graph, between which everything is
    saved. A break in the graph would cost more than compiling saves, so that the loss must not
    depend on values in Python. On CUDA, a step is one launch of a graph of kernels.
    """
    torch.compiler.reset()  # torch limits how many graphs it compiles; earlier models count too
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # see hooks that are set later
    mode = "reduce-overhead" if device.type == "cuda" else None
    machine_code = torch.compile(differentiate, fullgraph=True, dynamic=False, mode=mode)
    prepared: set[tuple[torch.Size, ...]] = set()

    def run(model: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        shapes = tuple(value.shape for value in batch.values())
        if shapes not in prepared:  # the first call makes a plan, which must not be in the graph
            differentiate(model, batch)
            prepared.add(shapes)
        return machine_code(model, batch)

    return run


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works here; it needs a C++ compiler and Python's header files."""
    new_number = time.time_ns()  # so that no cache has this function
    try:
        torch.compile(lambda x: x + new_number, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # its class depends on what is missing
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"note: training without torch.compile: {reason[0]}", file=sys.stderr)
        return False
    return True
