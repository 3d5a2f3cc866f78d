"""What "=" attends to."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic.metrics.activations import Problem
from toycircuits.experiments.modular_arithmetic.metrics.wide import wide
from toycircuits.experiments.modular_arithmetic.task import LAST

KEYS = ("a", "b", "=")


def attention_tables(
    model: Transformer, problem: Problem, example: tuple[int, int]
) -> dict[str, pd.DataFrame]:
    """Attention from "=", by name.

    Returns:
        attention: one row for each head and key, with the mean over all pairs and the value for
            the pair `example`; attention_maps: for each head, attention to a over all pairs, with
            a row for each a and a column for each b.
    """
    p = problem.p
    pattern = _pattern_of_equals(model, problem)
    means, at_example = pattern.mean(0), pattern[example[0] * p + example[1]]
    rows = [
        {"head": head, "key": key, "mean": mean, "example": value}
        for head in range(pattern.shape[1])
        for key, mean, value in zip(
            KEYS, means[head].tolist(), at_example[head].tolist(), strict=True
        )
    ]
    maps = []
    for head in range(pattern.shape[1]):
        table = wide(pattern[:, head, 0].reshape(p, p), [f"b{b}" for b in range(p)])
        table.insert(0, "head", head)
        table.insert(1, "a", range(p))
        maps.append(table)
    return {"attention": pd.DataFrame(rows), "attention_maps": pd.concat(maps, ignore_index=True)}


def _pattern_of_equals(model: Transformer, problem: Problem) -> Float[Tensor, "pair head key"]:
    patterns: list[Tensor] = []

    def record(pattern: Tensor, hook: HookPoint) -> None:
        patterns.append(pattern[:, :, -1].to(torch.float64))

    with torch.no_grad():
        hooks = [("blocks.0.attn.hook_pattern", record)]
        model.run_with_hooks(problem.tokens, read=(LAST,), fwd_hooks=hooks)
    return patterns[0]
