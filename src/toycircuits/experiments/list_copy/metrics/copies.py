"""What the layouts `in_place` and `masked` ask: which copies are written, by which architecture."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.list_copy.metrics.attention import (
    leaked_attention,
    pattern_ranges,
    patterns_of,
)
from toycircuits.experiments.list_copy.task import LIST_LENGTH, written


def measure_copies(
    model: Transformer, lists: Mapping[str, Tensor]
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tables of architecture, attention ranges and outcomes on `lists`, and their key metrics."""
    patterns = patterns_of(model, lists["inputs"])
    with torch.no_grad():
        outputs = written(model, **lists).cpu().numpy()
    numbers = lists["inputs"][:, :LIST_LENGTH].cpu().numpy()
    tables = {
        "architecture": architecture_table(model),
        "pattern_ranges": pattern_ranges(patterns, model.settings.allowed),
        "outcomes": outcome_table(outputs, numbers),
    }
    metrics = {"leaked_attention": leaked_attention(patterns)}
    for name in ("parameters", "trainable"):
        metrics[name] = float(tables["architecture"][name].item())
    for layer, ranges in tables["pattern_ranges"].groupby("layer"):
        metrics[f"pattern_range_layer{layer}"] = float((ranges["max"] - ranges["min"]).max())
    return tables, metrics


def architecture_table(model: Transformer) -> pd.DataFrame:
    """The settings in which the models of an experiment differ, and the number of parameters.

    The table has one row.
    """
    settings, parameters = model.settings, list(model.parameters())
    row = {
        "n_layers": settings.n_layers,
        "d_model": settings.d_model,
        "normalization": settings.normalization or "none",
        "use_bias": settings.use_bias,
        "freeze_W_V": settings.freeze_W_V,
        "freeze_W_O": settings.freeze_W_O,
        "parameters": sum(weights.numel() for weights in parameters),
        "trainable": sum(weights.numel() for weights in parameters if weights.requires_grad),
    }
    return pd.DataFrame([row])


def outcome_table(
    outputs: Int[np.ndarray, "list 2"], lists: Int[np.ndarray, "list 2"]
) -> pd.DataFrame:
    """How often each kind of copy is written, over the lists of two different numbers.

    >>> lists = np.array([[1, 2], [1, 2], [1, 2], [3, 3]])
    >>> table = outcome_table(np.array([[1, 2], [2, 1], [1, 1], [3, 3]]), lists)
    >>> table["share"].round(3).tolist(), table["outcome"].tolist()[:3]
    ([0.333, 0.333, 0.333, 0.0, 0.0], ['d1 d2', 'd2 d1', 'd1 d1'])
    """
    differ = lists[:, 0] != lists[:, 1]
    outputs, (d1, d2) = outputs[differ], lists[differ].T
    kinds = {"d1 d2": (d1, d2), "d2 d1": (d2, d1), "d1 d1": (d1, d1), "d2 d2": (d2, d2)}
    shares = {name: (outputs == np.stack(pair, 1)).all(1).mean() for name, pair in kinds.items()}
    shares["other"] = 1 - sum(shares.values())
    return pd.DataFrame({"outcome": shares.keys(), "share": shares.values()})
