"""`LensTransformer`: the surface that TransformerLens's tools ask for, beside the tools."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_lens import HAVE_MLP, SLICES, WITHOUT_MLP, Made, make
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache, patching
from transformer_lens.config import TransformerLensConfig
from transformer_lens.model_protocol import TransformerLensModel, TransformerLensModelWithWeights
from transformer_lens.tools import analysis
from transformer_lens.utilities import lm_cross_entropy_loss

from toycircuits import load_run
from toycircuits.core.config import read_params
from toycircuits.core.lens import LensTransformer
from toycircuits.core.transformer import Transformer

MakeModel = Callable[..., Transformer]
ROOT = Path(__file__).resolve().parents[1]
PARAMS = read_params(ROOT / "params.yaml")
NO_TOKENS = [
    name for name in PARAMS["released"] if PARAMS["runs"][name]["slice"] == "linear_regression"
]
WITH_TOKENS = [name for name in PARAMS["released"] if name not in NO_TOKENS]


@pytest.fixture(params=SLICES)
def made(request: pytest.FixtureRequest) -> Made:
    return make(request.param)


def test_it_is_what_the_protocols_ask_for(made: Made) -> None:
    assert isinstance(made.model, TransformerLensModel)
    asked = {*dir(TransformerLensModelWithWeights)} - {*dir(object)}
    asked = {name for name in asked if not name.startswith("_")}
    assert {"blocks", "ln_final", "accumulated_bias"} <= asked  # from Python 3.12 on, isinstance
    assert all(hasattr(made.model, name) for name in asked)  # does not see submodules
    assert isinstance(made.model.cfg, TransformerLensConfig)
    assert not any(module.training for module in made.model.modules())


def test_it_computes_what_the_transformer_computes(make_model: MakeModel) -> None:
    model = make_model(n_layers=2, normalization="LN", use_bias=True)
    lens = LensTransformer.of(model)
    tokens = torch.tensor([[1, 2, 3], [4, 0, 6]])
    assert lens.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(lens.state_dict()[name], weight)
    assert torch.equal(lens(tokens), model(tokens))
    assert torch.equal(lens(tokens, read=(2,)), model(tokens, read=(2,)))
    assert torch.equal(lens([[1, 2, 3]]), model(tokens[:1]))
    assert torch.equal(lens(tokens[0]), model(tokens[:1]))
    assert {*lens.hook_dict} >= {*model.hook_dict}
    kept = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in lens.named_parameters()} == kept


def test_the_configuration_is_that_of_the_model(made: Made) -> None:
    cfg, settings = made.model.cfg, made.model.settings
    for name in ("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "d_vocab_out", "n_ctx"):
        assert getattr(cfg, name) == getattr(settings, name)
    assert cfg.d_mlp == (settings.d_mlp or 0)
    assert cfg.attn_only == (settings.d_mlp is None)
    assert cfg.normalization_type == settings.normalization
    assert cfg.dtype == torch.float64
    assert made.model.float().cfg.dtype == torch.float32
    assert cfg.attention_dir == "causal"
    assert not cfg.default_prepend_bos


def test_a_mask_with_later_keys_is_not_called_causal(make_model: MakeModel) -> None:
    model = LensTransformer.of(make_model(masks=[["..1", "1..", ".1."]]))
    assert model.cfg.attention_dir == "bidirectional"


def test_weights_are_stacked(made: Made) -> None:
    model = made.model
    state, layers = model.state_dict(), range(model.cfg.n_layers)
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        expected = torch.stack([state[f"blocks.{layer}.attn.{name}"] for layer in layers])
        assert torch.equal(getattr(model, name), expected)
    for name in ("W_in", "b_in", "W_out", "b_out"):
        if model.cfg.attn_only:
            assert not hasattr(model, name)
            with pytest.raises(AttributeError, match=f"{name}: this model has no MLPs"):
                getattr(model, name)
        else:
            expected = torch.stack([state[f"blocks.{layer}.mlp.{name}"] for layer in layers])
            assert torch.equal(getattr(model, name), expected)
    singles = {"W_E": "embed", "W_pos": "pos_embed", "W_U": "unembed", "b_U": "unembed"}
    for name, part in singles.items():
        assert torch.equal(getattr(model, name), state[f"{part}.{name}"])
    assert_close(model.QK[0, 1].AB, model.W_Q[0, 1] @ model.W_K[0, 1].T)
    assert_close(model.OV[0, 1].AB, model.W_V[0, 1] @ model.W_O[0, 1])


def test_parts_can_be_called(made: Made) -> None:
    model, tokens = made.model, made.clean
    assert torch.equal(model.embed(tokens), model.W_E[tokens])
    assert torch.equal(model.pos_embed(tokens)[1], model.W_pos[: tokens.shape[1]])
    resid = model.embed(tokens) + model.pos_embed(tokens)
    assert_close(model(tokens, stop_at_layer=0), resid)
    for layer in range(model.cfg.n_layers):
        resid = model(tokens, stop_at_layer=layer + 1)
        backwards = model(tokens, stop_at_layer=layer - model.cfg.n_layers)
        assert torch.equal(backwards, model(tokens, stop_at_layer=layer))
    assert_close(model.unembed(model.ln_final(resid)), model(tokens))
    with pytest.raises(ValueError, match="stop_at_layer: found 9; allowed are"):
        model(tokens, stop_at_layer=9)


@pytest.mark.parametrize("name", SLICES)
def test_the_loss_is_that_of_next_tokens_where_the_task_has_them(name: str) -> None:
    made = make(name)
    if name != "list_copy, next_token":
        for call in (
            lambda: made.model(made.clean, return_type="loss"),
            lambda: made.model(made.clean, return_type="both"),
            lambda: made.model.loss_fn(made.model(made.clean), made.clean),
        ):
            with pytest.raises(ValueError, match="does not score each next token") as raised:
                call()
            assert "\n" not in str(raised.value)
        return
    logits, loss = made.model(made.clean, return_type="both")
    assert_close(loss, lm_cross_entropy_loss(logits, made.clean))
    assert torch.equal(loss, made.model(made.clean, return_type="loss"))
    each = made.model(made.clean, return_type="loss", loss_per_token=True)
    assert_close(each, lm_cross_entropy_loss(logits, made.clean, per_token=True))
    assert made.model(made.clean, return_type=None) is None
    with pytest.raises(ValueError, match="leave out `read`"):
        made.model(made.clean, read=(1,), return_type="loss")


def test_gradients_are_cached_with_a_loss() -> None:
    made = make("list_copy, next_token")
    loss, cache = made.model.run_with_cache(made.clean, return_type="loss", incl_bwd=True)
    assert loss.ndim == 0
    name = "blocks.1.hook_resid_pre"
    resid = cache[name].clone().requires_grad_()
    hooks = [(name, lambda x, hook: resid)]
    loss = made.model.run_with_hooks(made.clean, return_type="loss", fwd_hooks=hooks)
    (gradient,) = torch.autograd.grad(loss, resid)
    assert_close(cache[f"{name}_grad"], gradient)


def test_tokens_are_integers(made: Made) -> None:
    model = made.model
    assert model.to_tokens([1, 2]).tolist() == [[1, 2]]
    assert model.to_tokens([[1, 2], [0, 1]]).tolist() == [[1, 2], [0, 1]]
    assert model.to_tokens(3).tolist() == [[3]]
    assert model.to_single_token(3) == 3
    assert model.to_str_tokens([1, 2]) == ["1", "2"]
    assert model.tokenizer is None


BAD: dict[str, tuple[Callable[[LensTransformer], Any], str]] = {
    "text": (lambda m: m("a b"), "found 'a b'; there is no tokenizer"),
    "list of text": (lambda m: m.to_tokens(["a"]), "there is no tokenizer"),
    "text in a cache": (lambda m: m.run_with_cache("a b"), "there is no tokenizer"),
    "token of text": (lambda m: m.to_single_token("a"), "there is no tokenizer"),
    "no token": (lambda m: m.to_single_token(99), "allowed are integers from 0 to"),
    "BOS": (lambda m: m.to_tokens([1], prepend_bos=True), "prepend_bos: found True"),
    "floats": (lambda m: m(torch.zeros(1, 3)), "tokens: found torch.float32 of shape"),
    "ragged": (lambda m: m.to_tokens([[1, 2], [1]]), "there is no tokenizer"),
    "two sequences": (lambda m: m.to_str_tokens([[1], [2]]), "found 2 sequences"),
    "return_type": (lambda m: m([1, 2, 3], return_type="x"), "return_type: found 'x'"),
    "return_type second": (lambda m: m([1, 2, 3], "loss"), "give return_type by its name"),
    "direction of text": (lambda m: m.tokens_to_residual_directions("a"), "tokens: found 'a'"),
    "direction": (lambda m: m.tokens_to_residual_directions(99), "found 99; allowed are output"),
    "negative": (lambda m: m.tokens_to_residual_directions(-1), "found -1; allowed are output"),
    "layer": (lambda m: m.accumulated_bias(9), "layer: found 9; allowed are 0 to"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_raises_one_line(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as raised:
        call(make("modular_arithmetic").model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", SLICES)
def test_hooks_that_would_never_be_called_raise(name: str) -> None:
    model = make(name).model

    def hook(x: Tensor, hook: object) -> None:
        pass

    off = "blocks.0.attn.hook_result"
    for add in (
        lambda name: model.add_hook(name, hook),
        lambda name: model.run_with_hooks([1, 2, 3], fwd_hooks=[(name, hook)]),
        lambda name: model.run_with_cache([1, 2, 3], names_filter=name),
        lambda name: model.run_with_cache([1, 2, 3], names_filter=[name]),
    ):
        with pytest.raises(KeyError, match=r"only after model.set_use_attn_result\(True\)"):
            add(off)
        with pytest.raises(KeyError, match="hook_none: this model has no such hook point"):
            add("blocks.0.hook_none")
        if name in WITHOUT_MLP:
            with pytest.raises(KeyError, match="hook_mlp_out: this model has no MLPs"):
                add("blocks.0.hook_mlp_out")
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_choice_of_names_adds_one_hook_to_each_point(made: Made) -> None:
    model = made.model
    model.set_use_split_qkv_input(True)
    called: list[str] = []
    hooks = [(lambda name: True, lambda x, hook: called.append(hook.name))]
    model.run_with_hooks(made.clean, fwd_hooks=hooks)
    once = [name for name in called if not name.endswith("ln1.hook_scale")]
    once = [
        name for name in once if not name.endswith("ln1.hook_normalized")
    ]  # one each for q, k, v
    assert len(once) == len({*once})
    assert "blocks.0.hook_q_input" in once or "blocks.0.attn.hook_q_input" in once
    assert not any("result" in name or "attn_in" in name for name in once)


@pytest.mark.parametrize("name", SLICES)
def test_flags_exclude_each_other_and_need_their_parts(name: str) -> None:
    model = make(name).model
    model.set_use_attn_in(True)
    with pytest.raises(ValueError, match=r"first call set_use_attn_in\(False\)"):
        model.set_use_split_qkv_input(True)
    model.set_use_attn_in(False)
    model.set_use_split_qkv_input(True)
    with pytest.raises(ValueError, match=r"first call set_use_split_qkv_input\(False\)"):
        model.set_use_attn_in(True)
    model.set_use_hook_mlp_in(False)
    if name in WITHOUT_MLP:
        with pytest.raises(ValueError, match="this model has no MLPs"):
            model.set_use_hook_mlp_in(True)


FLAGS = [("use_attn_result", "attn.hook_result"), ("use_split_qkv_input", "hook_k_input")]
FLAGS += [("use_attn_in", "hook_attn_in"), ("use_hook_mlp_in", "hook_mlp_in")]


@pytest.mark.parametrize(("flag", "hook"), FLAGS)
@pytest.mark.parametrize("name", SLICES)
def test_optional_hook_points_change_no_logits_and_are_used(
    name: str, flag: str, hook: str
) -> None:
    made = make(name)
    if hook == "hook_mlp_in" and name not in HAVE_MLP:
        return
    before = made.model(made.clean)
    getattr(made.model, f"set_{flag}")(True)
    assert not any(module.training for module in made.model.modules())
    assert_close(made.model(made.clean), before)
    edit = [(f"blocks.0.{hook}", lambda x, hook: x * torch.linspace(0, 2, x.shape[-1]))]
    after = made.model.run_with_hooks(made.clean, fwd_hooks=edit)
    assert (after - before).abs().max() > 1e-3


def test_weights_drawn_anew_are_a_control(made: Made) -> None:
    model = made.model
    before = {name: p.clone() for name, p in model.named_parameters()}
    anew: Any = analysis.reinitialized(model, seed=0)
    assert torch.equal(anew(made.clean), analysis.reinitialized(model, seed=0)(made.clean))
    for name, p in anew.named_parameters():
        assert torch.equal(before[name], model.get_parameter(name))  # the model stays
        leaf = name.rpartition(".")[2]
        if not p.requires_grad:
            assert torch.equal(p, before[name])
        elif leaf.startswith("W_"):
            assert not torch.equal(p, before[name])
        else:
            assert p.eq(1.0 if leaf == "w" else 0.0).all()
    drawn = torch.cat([anew.W_E.flatten(), anew.W_Q.flatten(), anew.W_U.flatten()])
    # 5 standard errors of the standard deviation of so many normal draws.
    error = 5 / (2 * len(drawn)) ** 0.5
    assert drawn.std().item() == pytest.approx(0.8 / model.cfg.d_model**0.5, rel=error)


def test_a_copy_is_its_own_model(made: Made) -> None:
    other = copy.deepcopy(made.model)
    before = made.model(made.clean)
    assert torch.equal(pickle.loads(pickle.dumps(made.model))(made.clean), before)
    assert torch.equal(other(made.clean), before)
    with torch.no_grad():
        other.W_E.zero_()
    other.set_use_attn_result(True)
    assert torch.equal(made.model(made.clean), before)
    assert not made.model.cfg.use_attn_result
    other.reset_hooks()
    assert other.blocks[0].attn.reset_parameters.args == (other.blocks[0].attn,)


def test_layer_norm_is_folded_where_it_can_be(make_model: MakeModel) -> None:
    changes = {"n_layers": 2, "normalization": "LN"}
    tokens = torch.tensor([[1, 2, 3], [4, 0, 6]])
    model = LensTransformer.of(make_model(use_bias=True, **changes))
    folded = model.fold_layer_norm()
    assert_close(folded(tokens), model(tokens))
    norms = [p for name, p in folded.named_parameters() if name.endswith(".w")]
    assert len(norms) == 5
    assert all(w.eq(1).all() for w in norms)
    assert not any(p.any() for name, p in folded.named_parameters() if name.endswith(".b"))
    for other, message in (
        ({"use_bias": True}, "this model has no LayerNorm"),
        ({"use_bias": False, **changes}, "no biases that can take that of LayerNorm"),
        (
            {"use_bias": True, **changes, "freeze_W_V": True, "d_head": 4},
            "W_V is frozen and takes no weight",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            LensTransformer.of(make_model(**other)).fold_layer_norm()


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_released_models_with_tokens_are_ready_for_the_tools(name: str) -> None:
    run = load_run(name, root=ROOT)
    assert isinstance(run.model, LensTransformer)
    run.model.double()
    key = next(key for key in ("all_inputs", "inputs", "tokens") if key in run.data)
    clean, corrupted = run.data[key][:2], run.data[key][-2:]
    logits, cache = run.model.run_with_cache(clean)
    found = patching.get_act_patch_attn_head_out_all_pos(
        run.model, corrupted, cache, lambda logits: logits.square().mean()
    )
    assert found.shape == (run.model.cfg.n_layers, run.model.cfg.n_heads)
    lens = analysis.logit_lens(run.model, clean, positions=None)
    assert_close(lens.values[-1], logits.detach())
    assert run.model.next_token == (name == "list_copy_10")


@pytest.mark.parametrize("name", NO_TOKENS)
def test_models_without_tokens_say_so(name: str) -> None:
    run = load_run(name, root=ROOT)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 6, run.model.d_model, generator=generator)
    _, cache = run.model.run_with_cache(z, z[:, -1])
    named = ActivationCache(cache, run.model)
    assert_close(named["pattern", 0], cache["blocks.0.attn.hook_pattern"])
    for tool in (patching.get_act_patch_attn_head_out_all_pos, patching.get_act_patch_resid_pre):
        with pytest.raises(AttributeError, match="InContextAttention has no tokens"):
            tool(run.model, z, named, lambda out: out.mean())
    with pytest.raises(AttributeError, match="InContextAttention has no tokens"):
        patching.get_act_patch_direct_path(
            run.model, z, named, named, lambda out: out.mean(), src_layer=0, src_head=0
        )
    with pytest.raises(AttributeError, match="InContextAttention has no tokens"):
        named.stack_head_results()
    assert copy.deepcopy(run.model)(z, z[:, -1]).shape == (3, 1)
    subspace = analysis.orthonormal_subspace(run.model.blocks[0].attn.weight("Q")[0].detach())
    score = analysis.projection_kernel(subspace, subspace).score
    assert score.item() == pytest.approx(subspace.rank, rel=1e-5)
