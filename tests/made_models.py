"""Tiny transformers and their masks, for several files of tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toycircuits.core.transformer import Transformer, TransformerSettings

MakeSettings = Callable[..., TransformerSettings]
MakeModel = Callable[..., Transformer]

CAUSAL = ("1..", "11.", "111")
ALL_TO_ALL = ("111", "111", "111")
BACKWARDS = ("..1", "1..", ".1.")  # one key a query, and never an earlier one for the first
#        d1 d2 SEP o1 o2
COPY_100 = ("1....", "1....", "11...", "..1..", "..11.")
COPY_10 = ("1....", "11...", "111..", "..11.", "..111")
ATTENTION_ONLY: dict[str, Any] = {"d_mlp": None, "act_fn": None}
MLPS: list[dict[str, Any]] = [
    ATTENTION_ONLY,
    {"d_mlp": 5, "act_fn": "relu"},
    {"d_mlp": 3, "act_fn": "gelu"},
]


def some_tokens(settings: TransformerSettings, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(settings.d_vocab, (batch, settings.n_ctx), generator=generator)
