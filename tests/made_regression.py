"""Models and sequences of in-context regression, for several files of tests."""

import math
from typing import Any

import torch
from torch import Tensor

from toycircuits.experiments.linear_regression import model, task

DATA = {"d": 5, "n_examples": 40, "delta": 0.01, "n_validation": 96, "seed": 0}
MODEL = {"n_heads": 2, "init": "random", "stack": None}
TRAIN: dict[str, Any] = {
    **{"optimizer": "Adam", "lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.0},
    **{"batch_size": 128, "unit": "step", "length": 1, "log_every": 1, "checkpoint_every": 1},
    **{"schedule": None, "clip_grad_norm": None, "stop": None, "compile": False},
    **{"weight_seeds": [1024], "batch_seeds": None, "skip": 0},
}
MEASURE = {
    **{"qk_steps": [0, 2], "live_ratio": 0.1, "sequences": 70, "seed": 1},
    "lengths": {"first": 1, "last": 12, "step": 5},
}
LENGTHS = [1, 3, 7]


def stack(tied: bool = False, residual: bool = False, n_layers: int = 2) -> dict[str, Any]:
    return {"n_layers": n_layers, "tied": tied, "residual": residual}


def settings(**changes: Any) -> task.DataSettings:
    return task.DataSettings.parse(DATA | changes, "data")


def make_model(data: task.DataSettings, seed: int = 0, **changes: Any) -> model.InContextAttention:
    parsed = model.ModelSettings.parse(MODEL | changes, "model")
    return model.build(parsed, data, torch.Generator().manual_seed(seed))


def sequences(n: int = 9, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Sequences in float64."""
    made = task.sample(n, settings(**changes), torch.Generator().manual_seed(seed))
    return {name: value.double() for name, value in made.items()}


def plant(w: list[float], mu: list[float], d: int = 5) -> model.InContextAttention:
    """A layer whose heads have these w and mu, and nothing else in their circuits."""
    made = make_model(settings(d=d), n_heads=len(w)).double()
    layer = made.layers[0]
    with torch.no_grad():
        for name in "QKVO":
            layer.weight(name).zero_()
        entries = torch.eye(d + 1, dtype=torch.float64)
        for head, (w_h, mu_h) in enumerate(zip(w, mu, strict=True)):
            layer.weight("Q")[head] = entries * w_h * math.sqrt(d + 1)
            layer.weight("K")[head, :-1] = entries[:-1]
            layer.weight("V")[head, -1, -1] = 1.0
            layer.weight("O")[head, -1, 0] = mu_h
    return made


# The published start
