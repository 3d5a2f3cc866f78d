"""Stages import TransformerLens without the libraries that it has for language models."""

import subprocess
import sys

CHECK = """
import sys
from toycircuits.core import fast_import
{prepare}
fast_import.import_transformer_lens()
import torch
from toycircuits.core.transformer import Transformer, TransformerSettings
from transformer_lens import ActivationCache, FactoredMatrix

print([name for name in fast_import.HEAVY if name in sys.modules])
shape = dict(n_layers=1, n_heads=1, d_model=4, d_head=4, d_mlp=None, d_vocab=5, d_vocab_out=5)
rest = dict(act_fn=None, normalization="LN", use_bias=True, freeze_W_V=False, freeze_W_O=False)
settings = TransformerSettings.parse(shape | rest | {{"masks": [["1.", "11"]]}}, "model")
model = Transformer(settings, torch.Generator().manual_seed(0))
tokens = torch.tensor([[1, 2]])
logits, cache = model.run_with_cache(tokens)
assert isinstance(cache, (dict, ActivationCache))
assert cache["blocks.0.attn.hook_pattern"].shape == (1, 1, 2, 2)
zero = ("blocks.0.hook_attn_out", lambda x, hook: x * 0)
assert not torch.equal(model.run_with_hooks(tokens, fwd_hooks=[zero]), logits)
attn = model.blocks[0].attn
factored = FactoredMatrix(attn.W_Q[0], attn.W_K[0].T)
assert torch.allclose(factored.AB, attn.W_Q[0] @ attn.W_K[0].T)
"""


def run(prepare: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(prepare=prepare)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_hooks_caches_and_factored_matrices_need_none_of_them() -> None:
    assert run(prepare="").stdout.strip() == "[]"


def test_should_stand_ins_not_do_it_is_imported_as_it_is() -> None:
    """As when a later version wants more of them than that they exist."""
    done = run("fast_import._StandIn.__getattr__ = lambda module, name: 1 / 0")
    assert "'transformers'" in done.stdout
    assert done.stderr.startswith("note: TransformerLens starts slowly")


def test_what_is_loaded_already_stays() -> None:
    done = run("import huggingface_hub; hub = sys.modules['huggingface_hub']")
    assert "'huggingface_hub'" in done.stdout
