"""A state dict that `HookedTransformer` saved loads into our transformer and gives its logits.

tests/data/hooked_transformer_2.safetensors was made with TransformerLens 2.15.4: a two-layer
HookedTransformer (d_model 12, 3 heads of width 4, d_mlp 20, ReLU, LayerNorm, causal, every bias and
LayerNorm parameter drawn from N(0, 0.5^2)), its whole state dict, four sequences and their logits.
"""

from pathlib import Path

import torch
from safetensors import safe_open

from toycircuits.core.transformer import Transformer, TransformerSettings

FIXTURE = Path(__file__).parent / "data" / "hooked_transformer_2.safetensors"
SHAPE = {
    **{"n_layers": 2, "n_heads": 3, "d_model": 12, "d_head": 4, "d_mlp": 20, "act_fn": "relu"},
    **{"d_vocab": 9, "d_vocab_out": 7, "normalization": "LN", "use_bias": True},
    **{"freeze_W_V": False, "freeze_W_O": False},
    "masks": (tuple("1" * (query + 1) + "." * (5 - query) for query in range(6)),),
}


def test_a_checkpoint_of_transformer_lens_2_gives_the_same_logits() -> None:
    with safe_open(FIXTURE, framework="pt") as file:
        assert "transformer_lens 2." in file.metadata()["made_by"]
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tokens, logits = state.pop("expected/tokens"), state.pop("expected/logits")
    model = Transformer(TransformerSettings.parse(SHAPE, "model"), torch.Generator())
    before = model(tokens)
    model.load_state_dict(state)
    # 1e-5: both compute in float32, in another order of operations.
    assert torch.allclose(model(tokens), logits, atol=1e-5)
    assert torch.allclose(model(tokens, read=(2, 5)), logits[:, [2, 5]], atol=1e-5)
    assert not torch.allclose(before, logits, atol=0.1)
