"""TransformerLens 4's tools give on our models what TransformerLens 2 gave on its own.

tests/data/make_transformer_lens_2_tools.py made tests/data/transformer_lens_2_tools.safetensors
with TransformerLens 2.15.4: weights, tokens and what each call of a tool returned.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformer_lens import ActivationCache, patching

from toycircuits.core.lens import LensTransformer
from toycircuits.core.transformer import Transformer, TransformerSettings

FIXTURE = Path(__file__).parent / "data" / "transformer_lens_2_tools.safetensors"
SHAPE = {
    **{"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 6, "act_fn": "relu"},
    **{"d_vocab": 7, "d_vocab_out": 7, "normalization": "LN", "use_bias": True},
    **{"freeze_W_V": False, "freeze_W_O": False},
    "masks": (tuple("1" * (query + 1) + "." * (4 - query) for query in range(5)),),
}
ANSWER = 2
# Both compute in float32, in another order of operations; the values are near 1.
TOLERANCE = 2e-5
with safe_open(FIXTURE, framework="pt") as file:
    assert "transformer_lens 2." in file.metadata()["made_by"]
    SAVED = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
FOUND = {name.removeprefix("found/"): x for name, x in SAVED.items() if name.startswith("found/")}
PATCHING = [name.removeprefix("patching/") for name in FOUND if name.startswith("patching/")]
CACHED = [name.removeprefix("cache/") for name in FOUND if name.startswith("cache/")]


@pytest.fixture(scope="module")
def model() -> LensTransformer:
    plain = Transformer(TransformerSettings.parse(SHAPE, "model"), torch.Generator())
    weights = {name.removeprefix("weights/"): x for name, x in SAVED.items()}
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return LensTransformer.of(plain, next_token=True)


@pytest.fixture(scope="module")
def cache(model: LensTransformer) -> ActivationCache:
    with torch.no_grad():
        return model.run_with_cache(SAVED["clean"])[1]


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, ANSWER].mean()


def assert_recorded(name: str, found: Tensor) -> None:
    torch.testing.assert_close(found, FOUND[name], atol=TOLERANCE, rtol=TOLERANCE)


def test_all_functions_of_patching_were_recorded() -> None:
    """TransformerLens 4 has two more, which patch paths; test_lens_tools.py has them."""
    now = {name for name in dir(patching) if name.startswith("get_act_patch_")}
    new = {"get_act_patch_direct_path", "get_act_patch_direct_path_all_sources"}
    assert now - new == {*PATCHING}
    assert len(PATCHING) == 18


@pytest.mark.parametrize("name", PATCHING)
def test_activation_patching(name: str, model: LensTransformer, cache: ActivationCache) -> None:
    patch = getattr(patching, name)
    assert_recorded(f"patching/{name}", patch(model, SAVED["corrupted"], cache, metric))


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("method", ["decompose_resid", "stack_head_results"])
def test_decompositions(method: str, layer: int, apply_ln: bool, cache: ActivationCache) -> None:
    stack = getattr(cache, method)(layer, apply_ln=apply_ln)
    assert_recorded(f"{method}/{layer}/{apply_ln}", stack)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("method", ["stack_neuron_results", "get_full_resid_decomposition"])
def test_decompositions_by_neuron(method: str, layer: int, cache: ActivationCache) -> None:
    stack = getattr(cache, method)(layer, apply_ln=True, pos_slice=-1)
    assert_recorded(f"{method}/{layer}", stack)


OTHERS: dict[str, Callable[[ActivationCache], Any]] = {
    "decompose_resid/mlp_input": lambda c: c.decompose_resid(1, mlp_input=True, apply_ln=True),
    "accumulated_resid": lambda c: c.accumulated_resid(incl_mid=True),
    "stack_activation": lambda c: c.stack_activation("z"),
    "apply_ln_to_stack": lambda c: c.apply_ln_to_stack(
        c.decompose_resid(pos_slice=-1), pos_slice=-1
    ),
    "pattern": lambda c: c["pattern", 1],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_of_the_cache(name: str, cache: ActivationCache) -> None:
    assert_recorded(name, OTHERS[name](cache))


@pytest.mark.parametrize("fold", [False, True])
def test_attributions_to_logits(fold: bool, model: LensTransformer) -> None:
    """Recorded of a model with LayerNorm folded in; ours gives the same without folding."""
    used = model.fold_layer_norm() if fold else model
    with torch.no_grad():
        logits, cache = used.run_with_cache(SAVED["clean"])
    assert_recorded("folded_logits", logits)
    stack = cache.decompose_resid(pos_slice=-1)
    assert_recorded("logit_attrs", cache.logit_attrs(stack, ANSWER, pos_slice=-1))
    difference = cache.logit_attrs(stack, ANSWER, ANSWER + 1, pos_slice=-1)
    assert_recorded("logit_attrs/difference", difference)
    heads = cache.logit_attrs(cache.stack_head_results(), SAVED["clean"])
    assert_recorded("logit_attrs/heads", heads)


def test_factored_matrices_and_biases(model: LensTransformer) -> None:
    assert_recorded("QK", model.QK.AB)
    assert_recorded("OV", model.OV.AB)
    for layer, mlp_input, mlp in ((1, False, True), (1, True, True), (2, False, False)):
        bias = model.accumulated_bias(layer, mlp_input, include_mlp_biases=mlp)
        assert_recorded(f"accumulated_bias/{layer}/{mlp_input}/{mlp}", bias)


@torch.no_grad()
def test_outputs_and_parts(model: LensTransformer) -> None:
    tokens = SAVED["clean"]
    assert_recorded("embed", model.embed(tokens))
    assert_recorded("pos_embed", model.pos_embed(tokens))
    assert_recorded("unembed", model.unembed(model.embed(tokens)))
    for stop in (0, 1, -1):
        assert_recorded(f"stop_at_layer/{stop}", model(tokens, stop_at_layer=stop))
    logits, loss = model(tokens, return_type="both")
    assert_recorded("logits", logits)
    assert_recorded("loss", loss)
    per_token = model(tokens, return_type="loss", loss_per_token=True)
    assert_recorded("loss_per_token", per_token)


def test_optional_activations_and_their_gradients(model: LensTransformer) -> None:
    flags = ("attn_result", "split_qkv_input", "hook_mlp_in")
    for flag in flags:
        getattr(model, f"set_use_{flag}")(True)
    _, cache = model.run_with_cache(SAVED["clean"], return_type="loss", incl_bwd=True)
    for flag in flags:
        getattr(model, f"set_use_{flag}")(False)
    assert len(CACHED) == 20
    for name in CACHED:
        assert_recorded(f"cache/{name}", cache[name])
