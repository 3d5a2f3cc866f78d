"""Ablations as data, applied inside a context that always undoes them.

Activation ablations replace what flows through one hook point; weight ablations replace a weight
matrix. Which of the two is meant is part of the data, not of the caller's code.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

# The columns of the row of a table in which nothing is ablated.
UNABLATED: dict[str, str | int] = dict.fromkeys(("component", "layer", "head", "method"), "none")
Method: TypeAlias = Literal["zero", "mean", "uniform", "weight_zero"]
HEAD_AXIS = {"hook_q": 2, "hook_k": 2, "hook_v": 2, "hook_z": 2}
HEAD_AXIS |= {"hook_attn_scores": 1, "hook_pattern": 1}


@dataclass(frozen=True)
class Ablation:
    """One ablation.

    Attributes:
        component: what the tables call it ("pattern", "mlp_out", "W_O", ...).
        name: hook point, or for `weight_zero` the parameter.
        method: "zero" and "mean" replace the activation (by its mean over a reference set);
            "uniform" makes the attention scores equal, so that each query attends evenly to the
            keys it may attend to (its hook point is `hook_attn_scores`);
            "weight_zero" sets a weight matrix to zero.
        layer: the layer, or None for all of them.
        head: the head, or None for all of them.
    """

    component: str
    name: str
    method: Method
    layer: int | None = None
    head: int | None = None

    @property
    def columns(self) -> dict[str, str | int]:
        """The columns that say in a table which ablation a row is about."""
        layer = "all" if self.layer is None else self.layer
        head = "all" if self.head is None else self.head
        return {"component": self.component, "layer": layer, "head": head, "method": self.method}


def mean_activations(
    model: HookedRootModule, run: Callable[[], object], names: Iterable[str]
) -> dict[str, Tensor]:
    """Mean over the batch of each hook point in `names` while `run` calls the model, once."""
    means: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: HookPoint) -> None:
        assert hook.name is not None
        means[hook.name] = activation.mean(0, keepdim=True)

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        run()
    return means


@contextmanager
def ablated(
    model: HookedRootModule,
    ablations: Iterable[Ablation],
    means: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Run the body with `ablations` in force; hooks and weights are as before afterwards.

    Args:
        means: mean activations, from `mean_activations`, for the ablations with method "mean".

    Raises:
        KeyError: a hook point or parameter is not in the model, a parameter is frozen, or a mean is
            not given.
    """
    hooks = []
    with ExitStack() as stack:
        for ablation in ablations:
            if ablation.method == "weight_zero":
                stack.enter_context(_zeroed(model, ablation))
            elif ablation.name not in model.hook_dict:
                raise KeyError(f"no hook point {ablation.name!r} in the model")
            else:
                mean = (means or {})[ablation.name] if ablation.method == "mean" else None
                hooks.append((ablation.name, _replacement(ablation, mean)))
        stack.enter_context(model.hooks(fwd_hooks=hooks))
        yield


@contextmanager
def _zeroed(model: HookedRootModule, ablation: Ablation) -> Iterator[None]:
    parameter = dict(model.named_parameters())[ablation.name]
    if not parameter.requires_grad:
        raise KeyError(f"{ablation.name!r} is frozen; the model does not read it")
    index = slice(None) if ablation.head is None else ablation.head
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter[index] = 0.0
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)


def _replacement(ablation: Ablation, mean: Tensor | None) -> Callable[[Tensor, HookPoint], Tensor]:
    def hook(activation: Tensor, hook: HookPoint) -> Tensor:
        if ablation.method == "uniform":
            new = torch.zeros_like(activation).masked_fill(activation == -torch.inf, -torch.inf)
        elif ablation.method == "mean":
            assert mean is not None
            new = mean.expand_as(activation)
        else:
            new = torch.zeros_like(activation)
        if ablation.head is None:
            return new
        axis = HEAD_AXIS[ablation.name.rpartition(".")[2]]
        index = torch.tensor([ablation.head], device=activation.device)
        return activation.index_copy(axis, index, new.index_select(axis, index))

    return hook
