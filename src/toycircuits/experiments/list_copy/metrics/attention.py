"""Attention patterns: their means, how much they vary over lists, and leaks past the separator."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from toycircuits.core.rows import Allowed
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.list_copy.metrics.activations import activations
from toycircuits.experiments.list_copy.task import LIST_LENGTH, OUTPUTS, POSITIONS

QUANTILES = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}


def patterns_of(
    model: Transformer, inputs: Int[Tensor, "list pos"]
) -> Float[np.ndarray, "layer list head query key"]:
    """Attention patterns as the model computes them."""
    acts = activations(model, inputs)
    layers = range(model.settings.n_layers)
    patterns = [acts[f"blocks.{i}.attn.hook_pattern"].double().cpu().numpy() for i in layers]
    return np.stack(patterns)


def pattern_table(
    model: Transformer, subsets: Mapping[str, Int[Tensor, "list pos"]]
) -> pd.DataFrame:
    """Mean attention pattern over each subset of lists, one row per cell.

    The weight of a cell that the mask forbids is NaN.
    """
    allowed = np.array(model.settings.allowed)
    means = {name: patterns_of(model, inputs).mean(1) for name, inputs in subsets.items()}
    rows = []
    for layer in range(model.settings.n_layers):
        for subset, mean in means.items():
            weights = np.where(allowed[layer], mean[layer], np.nan)
            for (head, query, key), weight in np.ndenumerate(weights):
                cell = {"query": POSITIONS[query], "key": POSITIONS[key], "weight": weight}
                rows.append({"subset": subset, "layer": layer, "head": head, **cell})
    return pd.DataFrame(rows)


def pattern_ranges(
    patterns: Float[np.ndarray, "layer list head query key"], allowed: Sequence[Allowed]
) -> pd.DataFrame:
    """Mean and quantiles over the lists of each attention weight, one row per cell.

    The table leaves out queries on which no output depends, such as the separator in the last
    layer. It also leaves out queries with a single key, whose weight is always 1, or with none.

    Args:
        allowed: the mask of each layer.
    """
    rows = []
    for layer, (mask, queries) in enumerate(zip(allowed, queries_read(allowed), strict=True)):
        for query in (query for query in queries if sum(mask[query]) > 1):
            for head, key in np.ndindex(patterns.shape[2], len(mask)):
                if mask[query][key]:
                    weights = patterns[layer, :, head, query, key]
                    cell = {"query": POSITIONS[query], "key": POSITIONS[key]}
                    rows.append({"layer": layer, "head": head, **cell, **quantiles(weights)})
    return pd.DataFrame(rows)


def queries_read(allowed: Sequence[Allowed]) -> list[list[int]]:
    """The queries of each layer on which an output depends.

    >>> see_all = [[True] * 5] * 5
    >>> queries_read([see_all, see_all])
    [[0, 1, 2, 3, 4], [3, 4]]
    """
    layers = [set(OUTPUTS)]
    for mask in reversed(allowed[1:]):
        keys = {key for query in layers[0] for key, seen in enumerate(mask[query]) if seen}
        layers.insert(0, layers[0] | keys)
    return [sorted(queries) for queries in layers]


def quantiles(values: Float[np.ndarray, " list"]) -> dict[str, float]:
    """Mean and quantiles.

    >>> quantiles(np.array([0.0, 0.5, 1.0]))["median"]
    0.5
    """
    at_levels = np.quantile(values, list(QUANTILES.values())).tolist()
    return {"mean": float(values.mean())} | dict(zip(QUANTILES, at_levels, strict=True))


def leaked_attention(patterns: Float[np.ndarray, "layer list head query key"]) -> float:
    """The largest attention of any output to d1 and d2 together, over layers, heads and lists."""
    return float(patterns[..., list(OUTPUTS), :LIST_LENGTH].sum(-1).max())
