"""PyTorch's fused Adam and AdamW, without the bookkeeping of its optimizer classes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from toycircuits.core.train_settings import TrainSettings

EPS = 1e-8  # of Adam, as PyTorch has it by default


class Optimizer:
    """PyTorch's fused Adam or AdamW, without what its classes look up again at every step.

    The lookups take a quarter of a millisecond, which is a quarter of a step of the smallest
    models. As in PyTorch, only parameters with a gradient change.
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
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            }
            for parameter in self.parameters
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients, and set the gradients to None."""
        pairs = [(s, s["parameter"].grad) for s in self._slots]
        slots, gradients = zip(*[(s, g) for s, g in pairs if g is not None], strict=True)
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
        """The moments and step counts, which `restore` takes."""
        moments = [{n: x for n, x in slot.items() if n != "parameter"} for slot in self._slots]
        return {f"{i}/{name}": x for i, slot in enumerate(moments) for name, x in slot.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the `state` of another optimizer of the same parameters."""
        for key, tensor in self.state().items():
            tensor.copy_(state[key])
