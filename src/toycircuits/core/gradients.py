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
