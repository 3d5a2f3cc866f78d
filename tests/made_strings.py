"""Reversed strings, their models and a planted solver, for several files of tests."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.reverse_increment import ablations, model, task
from toycircuits.experiments.reverse_increment.metrics import measure as metrics

Data = tuple[task.DataSettings, dict[str, Tensor]]
ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("sequential", "random")
DATA = {"n_symbols": 3, "length": 4, "n_train": 60, "n_sampled": 25, "seed": 0}
MODEL: dict[str, Any] = {"n_layers": 2, "n_heads": 1, "d_model": 4, "d_head": 2, "d_mlp": 16}
MODEL |= {"act_fn": "relu", "normalization": "LN", "use_bias": True}
TRAIN: dict[str, Any] = {
    **{"optimizer": "AdamW", "lr": 0.006, "betas": [0.9, 0.999], "weight_decay": 0.01},
    **{"batch_size": 256, "unit": "epoch", "length": 40, "log_every": 1, "checkpoint_every": 40},
    **{"schedule": {"warmup": 5, "peak": 1.3}, "clip_grad_norm": 1.0, "stop": None},
    "compile": False,
    **{"weight_seeds": [0], "batch_seeds": [0], "split": "sequential", "drop_last": False},
}
MEASURE = {"n_samples": 3}
ABLATE = {"control_draws": 5, "control_seed": 0}
RENDER = {"success_at_least": 0.99}


def make_data(**changes: Any) -> Data:
    settings = task.DataSettings.parse(DATA | changes, "data")
    return settings, task.generate(settings, torch.Generator().manual_seed(settings.seed))


def train_settings(**changes: Any) -> task.TrainSettings:
    return task.TrainSettings.parse(TRAIN | changes, "train")


def seen(split: str = "random", **changes: Any) -> Data:
    """Settings, and the data as a run with this split sees them."""
    settings, data = make_data(**changes)
    return settings, train_settings(split=split).select(data)


def make_model(settings: task.DataSettings, seed: int = 0, **changes: Any) -> Transformer:
    parsed = model.ModelSettings.parse(MODEL | changes, "model")
    return model.build(parsed, settings, torch.Generator().manual_seed(seed))


def scrambled(settings: task.DataSettings, seed: int = 0, **changes: Any) -> Transformer:
    """A float64 model in which nothing, biases and LayerNorms included, is 0 or 1."""
    made = make_model(settings, **changes).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.8, generator=generator)
    return made


def only(table: pd.DataFrame, **values: Any) -> dict[str, Any]:
    """The one row of `table` with these values."""
    (row,) = table[(table[list(values)] == pd.Series(values)).all(axis=1)].to_dict("records")
    return {str(name): value for name, value in row.items()}


def solver(settings: task.DataSettings, layer: int) -> Transformer:
    """In one layer each output attends to the symbol it needs, and adds ten times its successor.

    The residual stream holds the position, one-hot, and then the token, one-hot; all else is zero.
    """
    n, n_symbols = settings.length, settings.n_symbols
    shape = {"d_model": 2 * n + n_symbols + 1, "d_head": 2 * n, "d_mlp": 1}
    made = make_model(settings, **shape, normalization=None)
    for parameter in made.parameters():
        parameter.data.zero_()
    eye = torch.eye(shape["d_model"])
    made.get_parameter("pos_embed.W_pos").data = eye[: 2 * n]
    made.get_parameter("embed.W_E").data = eye[2 * n :]
    made.get_parameter("unembed.W_U").data = eye[:, 2 * n :]
    W_Q, W_K, W_V, W_O = (made.get_parameter(f"blocks.{layer}.attn.W_{c}").data[0] for c in "QKVO")
    W_K[: 2 * n] = torch.eye(2 * n)
    for output in range(n):
        W_Q[n + output, n - output] = 1000.0
    for symbol in range(n_symbols):
        W_V[2 * n + symbol, symbol] = 1.0
        W_O[symbol, 2 * n + (symbol + 1) % n_symbols] = 10.0
    return made


def measured(
    made: Transformer, states: list[Transformer], split: str = "random"
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tables and metrics of `made`, whose trajectory these models were, seven steps apart."""
    settings, data = seen(split)
    trajectory = [(7 * number, network.state_dict()) for number, network in enumerate(states)]
    parsed = metrics.MeasureSettings.parse(MEASURE, "measure")
    return metrics.measure(made, trajectory, data, settings, parsed)


SCORES = ["loss", "accuracy", "accuracy_string"]


def ablate(made: Transformer, split: str = "random", **changes: Any) -> pd.DataFrame:
    settings, data = seen(split)
    parsed = ablations.AblateSettings.parse(ABLATE | changes, "ablate")
    return ablations.ablate(made, data, settings, parsed)


def hooked_scores(made: Transformer, name: str, value: Tensor) -> dict[str, float]:
    """Loss and accuracies with `value` in place of one activation, from the whole forward."""
    holdout = task.part(seen()[1], "holdout")
    hook = (name, lambda activation, hook: value.expand_as(activation))
    with torch.no_grad(), made.hooks(fwd_hooks=[hook]):
        logits = made(holdout["inputs"])[:, 4:]
    return ablations.scores(logits, holdout["targets"])
