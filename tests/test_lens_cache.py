"""What `run_with_cache` returns, and the decompositions that TransformerLens makes of it."""

import pytest
import torch
from made_lens import HAVE_MLP, SLICES, WITHOUT_MLP, Made, make
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache

FINAL_NORM = "ln_final.hook_normalized"


@pytest.fixture(params=SLICES)
def made(request: pytest.FixtureRequest) -> Made:
    return make(request.param)


def run(made: Made, tokens: Tensor | None = None) -> tuple[Tensor, ActivationCache]:
    with torch.no_grad():
        logits, cache = made.model.run_with_cache(made.clean if tokens is None else tokens)
    return logits, cache


def last_resid(made: Made, cache: ActivationCache) -> Tensor:
    return cache["resid_post", made.model.cfg.n_layers - 1]


def biases_of_logits(made: Made) -> Tensor:
    """What the biases of the last LayerNorm and of the unembedding add to the logits."""
    b = made.model.ln_final.b if made.model.cfg.normalization_type else None
    return made.model.b_U + (0 if b is None else b @ made.model.W_U)


def test_a_cache_is_transformer_lenss_own_and_a_dict_on_request(made: Made) -> None:
    logits, cache = run(made)
    assert isinstance(cache, ActivationCache)
    again, plain = made.model.run_with_cache(made.clean, return_cache_object=False)
    assert type(plain) is dict
    assert_close(again, logits)
    assert {*plain} == {*cache.keys()}
    _, one = made.model.run_with_cache(made.clean[:1], remove_batch_dim=True)
    assert one["pattern", 0].shape == cache["pattern", 0].shape[1:]
    assert one.stack_head_results().shape[1:] == (made.last + 1, made.model.cfg.d_model)


def test_the_pattern_is_the_softmax_of_the_scores(made: Made) -> None:
    _, cache = run(made)
    d_head = made.model.cfg.d_head
    scores = torch.einsum("bqhd,bkhd->bhqk", cache["q", 0], cache["k", 0]) / d_head**0.5
    allowed = torch.tensor(made.model.settings.allowed[0])
    expected = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    expected[:, :, ~allowed.any(1)] = 0  # queries that see nothing
    assert_close(cache["pattern", 0], expected)
    total = cache["pattern", 0].sum(-1)
    assert_close(total, allowed.any(1).to(total).expand_as(total))


def test_components_add_up_to_the_residual_stream(made: Made) -> None:
    _, cache = run(made)
    cfg, expected = made.model.cfg, last_resid(made, cache)
    components, labels = cache.decompose_resid(return_labels=True)
    assert len(labels) == len(components) == 2 + cfg.n_layers * (1 if cfg.attn_only else 2)
    assert_close(components.sum(0), expected)
    assert_close(cache.get_full_resid_decomposition().sum(0), expected)
    by_layer = cache.get_full_resid_decomposition(expand_neurons=False)
    assert_close(by_layer.sum(0), expected)
    heads = cache.stack_head_results(incl_remainder=True)
    assert len(heads) == cfg.n_layers * cfg.n_heads + 1
    assert_close(heads.sum(0), expected)


def test_head_results_are_values_weighted_and_written(made: Made) -> None:
    _, cache = run(made)
    results = cache.stack_head_results()
    for layer in range(made.model.cfg.n_layers):
        weighted = torch.einsum("bhqk,bkhd->bqhd", cache["pattern", layer], cache["v", layer])
        for head in range(made.model.cfg.n_heads):
            row = layer * made.model.cfg.n_heads + head
            written = weighted[:, :, head] @ made.model.W_O[layer, head]
            assert_close(results[row], written.detach())


def test_accumulated_and_stacked_activations(made: Made) -> None:
    _, cache = run(made)
    accumulated, labels = cache.accumulated_resid(return_labels=True)
    assert labels[-1] == "final_post"
    for layer in range(made.model.cfg.n_layers):
        assert_close(accumulated[layer], cache["resid_pre", layer])
        assert_close(cache.stack_activation("z")[layer], cache["z", layer])
    assert_close(accumulated[-1], last_resid(made, cache))
    assert_close(accumulated[-1], cache["resid_post", -1])


def test_apply_ln_gives_what_the_unembedding_reads(made: Made) -> None:
    """Up to the weight and bias of LayerNorm, which the normalised components do not have."""
    logits, cache = run(made)
    components = cache.apply_ln_to_stack(cache.decompose_resid())
    total = components.sum(0)
    if made.model.cfg.normalization_type:
        total = total * made.model.ln_final.w + made.model.ln_final.b
        assert_close(total.detach(), cache[FINAL_NORM])
    assert_close((total @ made.model.W_U + made.model.b_U).detach(), logits)


@pytest.mark.parametrize("layer", [0, 1])
def test_attributions_add_up_to_the_logits(made: Made, layer: int) -> None:
    logits, cache = run(made)
    answers = made.clean[:, 0] % made.model.cfg.d_vocab_out
    stack = cache.decompose_resid() if layer else cache.get_full_resid_decomposition()
    attributed = cache.logit_attrs(stack, answers).sum(0)
    answer = logits.gather(2, answers[:, None, None].expand(-1, made.last + 1, 1)).squeeze(2)
    assert_close(attributed, (answer - biases_of_logits(made)[answers][:, None]).detach())
    difference = cache.logit_attrs(stack, 1, 0).sum(0)
    biases = biases_of_logits(made)
    expected = logits[:, :, 1] - logits[:, :, 0] - (biases[1] - biases[0])
    assert_close(difference, expected.detach())


@pytest.mark.parametrize("name", HAVE_MLP)
def test_neurons_add_up_to_the_output_of_the_mlps(name: str) -> None:
    made = make(name)
    _, cache = run(made)
    cfg = made.model.cfg
    neurons = cache.stack_neuron_results(-1)
    assert len(neurons) == cfg.n_layers * cfg.d_mlp
    expected = sum(
        cache["mlp_out", layer] - made.model.b_out[layer].detach() for layer in range(cfg.n_layers)
    )
    assert_close(neurons.sum(0).detach(), expected)


@pytest.mark.parametrize("name", WITHOUT_MLP)
def test_what_needs_an_mlp_says_that_there_is_none(name: str) -> None:
    _, cache = run(make(name))
    for call in (
        lambda: cache.stack_neuron_results(-1),
        lambda: cache.get_neuron_results(0),
        lambda: cache["mlp_out", 0],
        lambda: cache.accumulated_resid(incl_mid=True),
        lambda: cache["resid_mid", 0],
    ):
        with pytest.raises(KeyError, match=r"blocks\.0\..*: this model has no MLPs") as raised:
            call()
        assert "\n" not in str(raised.value)


def test_what_is_not_in_a_cache_says_why(made: Made) -> None:
    model = made.model
    _, some = model.run_with_cache(made.clean, names_filter="blocks.0.attn.hook_z")
    assert [*some.keys()] == ["blocks.0.attn.hook_z"]
    with pytest.raises(KeyError, match="hook_q: is not in this cache, because names_filter"):
        some["q", 0]
    with pytest.raises(KeyError, match=r"only after model.set_use_attn_result\(True\)"):
        some["result", 0]
    with pytest.raises(KeyError, match="hook_none: this model has no such hook point"):
        some["blocks.0.hook_none"]
    if model.cfg.normalization_type is None:
        with pytest.raises(KeyError, match="hook_scale: this model has no LayerNorm"):
            some["scale", 0, "ln1"]


def test_a_cache_has_all_positions_although_some_are_read(made: Made) -> None:
    """Otherwise it would add the embedding of the last position to the output of another."""
    logits, whole = run(made)
    with torch.no_grad():
        read, cache = made.model.run_with_cache(made.clean, read=(1, made.last))
    assert_close(read, logits[:, [1, made.last]])
    assert {*cache} == {*whole}
    for name in whole:
        assert_close(cache[name], whole[name])


def test_a_slice_of_positions_takes_positions(made: Made) -> None:
    """TransformerLens slices the last but one axis, which is that of heads in `hook_q_input`."""
    _, whole = run(made)
    _, last = made.model.run_with_cache(made.clean, pos_slice=-1)
    for name in ("resid_pre", "q", "z", "attn_out"):
        assert_close(last[name, 0], whole[name, 0][:, -1:])
    made.model.set_use_split_qkv_input(True)
    with pytest.raises(ValueError, match="TransformerLens would slice the heads of blocks"):
        made.model.run_with_cache(made.clean, pos_slice=-1)


def test_optional_hook_points_are_cached_under_both_names(made: Made) -> None:
    model = made.model
    _, cache = run(made)
    assert not any(name.endswith("_input") or "result" in name for name in cache)
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    logits, cache = run(made)
    model.set_use_split_qkv_input(False)
    model.set_use_attn_result(False)
    assert_close(logits, run(made)[0])
    heads = cache.stack_head_results()
    for layer in range(model.cfg.n_layers):
        results = cache["result", layer]
        assert_close(results, heads.unflatten(0, (-1, model.cfg.n_heads))[layer].movedim(0, 2))
        for name in ("hook_q_input", "hook_k_input", "hook_v_input"):
            copied = cache[f"blocks.{layer}.{name}"]
            of_heads = cache["resid_pre", layer].unsqueeze(2).expand_as(copied)
            assert_close(copied, of_heads)
            twin = cache[f"blocks.{layer}.attn.{name}"]
            assert torch.equal(twin, copied)
            assert twin.data_ptr() != copied.data_ptr()
