"""For all tests: shapes in signatures are checked, one thread, and tiny transformers to order."""

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import beartype.typing  # noqa: F401 (SHAPE_CHECKER looks it up)
import jaxtyping
import pytest
import torch

if TYPE_CHECKING:
    from toycircuits.core.transformer import Transformer, TransformerSettings

# An int may stand for a float, as for mypy. And jaxtyping decorates method by method, while
# beartype knows `Self` in decorated classes only.
SHAPE_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf("
    "is_pep484_tower=True, "
    "hint_overrides=beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})))"
)
jaxtyping.install_import_hook("toycircuits", SHAPE_CHECKER)
torch.set_num_threads(1)
# A shell's background jobs ignore Ctrl-C, and so would all commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    **{"n_layers": 1, "n_heads": 2, "d_model": 4, "d_head": 3, "d_mlp": 5},
    **{"d_vocab": 7, "d_vocab_out": 6, "act_fn": "relu", "normalization": None},
    **{"use_bias": False, "freeze_W_V": False, "freeze_W_O": False},
    "mask": ["1..", "11.", "111"],
}


@pytest.fixture
def make_settings() -> Callable[..., "TransformerSettings"]:
    """Tiny `TransformerSettings`, with changes."""
    from toycircuits.core.transformer import TransformerSettings

    return lambda **changes: TransformerSettings.parse(TINY | changes, "model")


@pytest.fixture
def make_model(
    make_settings: Callable[..., "TransformerSettings"],
) -> Callable[..., "Transformer"]:
    """A tiny float64 `Transformer` in which nothing trainable, biases included, is 0 or 1."""
    from toycircuits.core.transformer import Transformer

    def make(seed: int = 0, **changes: Any) -> Transformer:
        generator = torch.Generator().manual_seed(seed)
        model = Transformer(make_settings(**changes), generator).double()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.4, generator=generator)
        return model

    return make
