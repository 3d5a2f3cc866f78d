"""A tiny training, for several files of tests."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toycircuits.core.batches import Batch, BatchStream, full_batch
from toycircuits.core.train_settings import TrainSettings
from toycircuits.core.training import Objective, train

SETTINGS: dict[str, Any] = {
    **{"optimizer": "AdamW", "lr": 0.1, "betas": [0.9, 0.98], "weight_decay": 0.5},
    **{"batch_size": None, "unit": "step", "length": 10, "log_every": 1, "checkpoint_every": 5},
    **{"schedule": None, "clip_grad_norm": None, "stop": None, "compile": False},
    **{"weight_seeds": [0], "batch_seeds": None},
}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.parse(SETTINGS | changes, "train")


def some_data(rows: int = 10) -> dict[str, Tensor]:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    return {"x": x, "y": x @ torch.tensor([1.0, -2.0, 3.0]) + 0.5}


def new_model() -> nn.Linear:
    model = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    error: Tensor = model(batch["x"]).squeeze(1) - batch["y"]
    return error.square().mean()


def nothing(model: nn.Module) -> dict[str, float]:
    return {}


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def holds(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    expected = model.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in state.items()
    )


def run(
    folder: Path,
    train_settings: TrainSettings,
    stream: BatchStream | None = None,
    loss: Callable[[Any, Batch], Tensor] = squared_error,
    evaluate: Callable[[Any], dict[str, float]] = nothing,
    key: str = "key",
) -> tuple[list[dict[str, float]], nn.Linear]:
    model = new_model()
    objective = Objective(stream or full_batch(some_data()), loss, evaluate)
    return train(model, objective, train_settings, folder, key, {"name": "test"}), model


# --- the loop ---


def score(model: nn.Linear) -> dict[str, float]:
    return {"score": -squared_error(model, some_data()).item()}


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Mortal:
    """A loss that dies at its n-th call and counts its calls."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.calls = dies_at, 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        return squared_error(model, batch)
