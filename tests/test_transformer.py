"""The transformer against a forward written by hand; its hooks, weights and settings."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jaxtyping
import pytest
import torch
from made_models import (
    ALL_TO_ALL,
    ATTENTION_ONLY,
    BACKWARDS,
    CAUSAL,
    COPY_100,
    MLPS,
    MakeModel,
    MakeSettings,
    some_tokens,
)
from torch import Tensor
from torch.testing import assert_close

from toycircuits.core.config import InputError
from toycircuits.core.transformer import Transformer, TransformerSettings


def plain_forward(w: Mapping[str, Tensor], settings: TransformerSettings, tokens: Tensor) -> Tensor:
    """Every formula written out, with every weight and bias, frozen or not."""

    def norm(x: Tensor, name: str) -> Tensor:
        if settings.normalization is None:
            return x
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * w[f"{name}.w"] + w[f"{name}.b"]

    allowed = torch.tensor([[cell == "1" for cell in row] for row in settings.masks[0]])
    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"]
    for layer in range(settings.n_layers):
        attn, mlp = f"blocks.{layer}.attn.", f"blocks.{layer}.mlp."
        n = norm(x, f"blocks.{layer}.ln1")
        q, k, v = (
            torch.einsum("bpd,hdk->bhpk", n, w[f"{attn}W_{name}"]) + w[f"{attn}b_{name}"][:, None]
            for name in "QKV"
        )
        scores = torch.einsum("bhqk,bhsk->bhqs", q, k) / math.sqrt(settings.d_head)
        weights = scores.exp() * allowed
        pattern = weights / weights.sum(-1, keepdim=True)
        z = torch.einsum("bhqs,bhsk->bhqk", pattern, v)
        x = x + torch.einsum("bhqk,hkd->bqd", z, w[attn + "W_O"]) + w[attn + "b_O"]
        if settings.d_mlp is not None:
            pre = norm(x, f"blocks.{layer}.ln2") @ w[mlp + "W_in"] + w[mlp + "b_in"]
            gelu = pre * (1 + torch.erf(pre / math.sqrt(2))) / 2
            post = pre.clamp(min=0) if settings.act_fn == "relu" else gelu
            x = x + post @ w[mlp + "W_out"] + w[mlp + "b_out"]
    return norm(x, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]


@pytest.mark.parametrize("mask", [CAUSAL, ALL_TO_ALL, BACKWARDS])
@pytest.mark.parametrize("frozen", [(), ("W_V",), ("W_O",), ("W_V", "W_O")])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("normalization", [None, "LN"])
@pytest.mark.parametrize("mlp", MLPS, ids=["no-mlp", "relu", "gelu"])
@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 3), (2, 1), (3, 2)])
def test_forward_equals_the_one_written_by_hand(
    make_model: MakeModel,
    n_layers: int,
    n_heads: int,
    mlp: dict[str, Any],
    normalization: str | None,
    use_bias: bool,
    frozen: tuple[str, ...],
    mask: tuple[str, ...],
) -> None:
    model = make_model(
        **{"n_layers": n_layers, "n_heads": n_heads, "d_head": 4 if frozen else 3, "masks": [mask]},
        **{"normalization": normalization, "use_bias": use_bias, **mlp},
        **{f"freeze_{name}": True for name in frozen},
    )
    tokens = some_tokens(model.settings, batch=5)
    expected = plain_forward(model.state_dict(), model.settings, tokens)
    assert expected.std() > 0.1  # else all models would agree
    # float64, numbers of order 1 to 100: rounding leaves 1e-13 or so of them.
    assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


B, S, H, K, D, D_MLP = 2, 3, 2, 3, 4, 5
HOOKS = {
    "hook_embed": (B, S, D),
    "hook_pos_embed": (B, S, D),
    **{
        f"blocks.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "hook_resid_pre": (B, S, D),
            "ln1.hook_scale": (B, S, 1),
            "ln1.hook_normalized": (B, S, D),
            "attn.hook_q": (B, S, H, K),
            "attn.hook_k": (B, S, H, K),
            "attn.hook_v": (B, S, H, K),
            "attn.hook_attn_scores": (B, H, S, S),
            "attn.hook_pattern": (B, H, S, S),
            "attn.hook_z": (B, S, H, K),
            "hook_attn_out": (B, S, D),
            "hook_resid_mid": (B, S, D),
            "ln2.hook_scale": (B, S, 1),
            "ln2.hook_normalized": (B, S, D),
            "mlp.hook_pre": (B, S, D_MLP),
            "mlp.hook_post": (B, S, D_MLP),
            "hook_mlp_out": (B, S, D),
            "hook_resid_post": (B, S, D),
        }.items()
    },
    "ln_final.hook_scale": (B, S, 1),
    "ln_final.hook_normalized": (B, S, D),
}


def test_hooks_have_the_names_and_shapes_of_transformer_lens(make_model: MakeModel) -> None:
    model = make_model(n_layers=2, normalization="LN")
    _, cache = model.run_with_cache(some_tokens(model.settings, B))
    assert {name: tuple(value.shape) for name, value in cache.items()} == HOOKS


def test_attention_only_has_no_middle_of_a_layer(make_model: MakeModel) -> None:
    model = make_model(**ATTENTION_ONLY)
    assert not [name for name in model.hook_dict if "mlp" in name or "resid_mid" in name]


def test_residual_stream_adds_up(make_model: MakeModel) -> None:
    model = make_model(n_layers=2, normalization="LN", use_bias=True)
    _, cache = model.run_with_cache(some_tokens(model.settings, 4))
    total = cache["hook_embed"] + cache["hook_pos_embed"]
    for layer in range(2):
        assert_close(cache[f"blocks.{layer}.hook_resid_pre"], total)
        total = total + cache[f"blocks.{layer}.hook_attn_out"]
        assert_close(cache[f"blocks.{layer}.hook_resid_mid"], total)
        total = total + cache[f"blocks.{layer}.hook_mlp_out"]
        assert_close(cache[f"blocks.{layer}.hook_resid_post"], total)


@pytest.mark.parametrize("mask", [CAUSAL, BACKWARDS])
def test_patterns_are_distributions_over_the_allowed_keys(
    make_model: MakeModel, mask: tuple[str, ...]
) -> None:
    model = make_model(masks=[mask])
    _, cache = model.run_with_cache(some_tokens(model.settings, 4))
    pattern = cache["blocks.0.attn.hook_pattern"]
    assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    assert torch.equal(pattern[0, 0] > 0, torch.tensor(model.settings.allowed[0]))


@pytest.mark.parametrize("freeze_W_O", [False, True])
@pytest.mark.parametrize("head", [0, 1])
def test_a_hook_on_one_head_takes_away_its_contribution_alone(
    make_model: MakeModel, head: int, freeze_W_O: bool
) -> None:
    model = make_model(d_head=4, freeze_W_O=freeze_W_O, use_bias=True)
    tokens = some_tokens(model.settings, 4)

    def silence(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, head] = 0
        return z

    _, before = model.run_with_cache(tokens)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", silence)]):
        _, after = model.run_with_cache(tokens)
    contribution = (
        before["blocks.0.attn.hook_z"][:, :, head] @ model.get_parameter("blocks.0.attn.W_O")[head]
    )
    lost = before["blocks.0.hook_attn_out"] - after["blocks.0.hook_attn_out"]
    assert contribution.abs().max() > 0.1
    assert_close(lost, contribution)


LAYER_KEYS = {
    *(f"attn.{kind}_{name}" for kind in "Wb" for name in "QKVO"),
    *("ln1.w", "ln1.b", "ln2.w", "ln2.b"),
    *("mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out"),
}
KEYS = {
    *("embed.W_E", "pos_embed.W_pos", "unembed.W_U", "unembed.b_U", "ln_final.w", "ln_final.b"),
    *(f"blocks.{layer}.{key}" for layer in range(2) for key in LAYER_KEYS),
}


def test_state_dict_keys_are_those_of_hooked_transformer(make_model: MakeModel) -> None:
    assert set(make_model(n_layers=2, normalization="LN").state_dict()) == KEYS


def test_state_dict_keys_without_mlp_and_layer_norm(make_model: MakeModel) -> None:
    keys = {key for key in KEYS if "ln" not in key and "mlp" not in key}
    assert set(make_model(n_layers=2, **ATTENTION_ONLY).state_dict()) == keys


def test_mask_buffers_of_hooked_transformer_are_passed_over(make_model: MakeModel) -> None:
    source, target = make_model(seed=1), make_model(seed=2)
    buffers = {
        "blocks.0.attn.mask": torch.ones(3, 3).tril().bool(),
        "blocks.0.attn.IGNORE": torch.tensor(-torch.inf),
    }
    state = source.state_dict() | buffers
    target.load_state_dict(state)
    assert set(buffers) < set(state)  # the caller's own dictionary keeps them
    tokens = some_tokens(source.settings, 4)
    assert torch.equal(target(tokens), source(tokens))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_state_dict_that_does_not_fit_is_refused(make_model: MakeModel, change: str) -> None:
    model = make_model()
    state = dict(model.state_dict())
    if change == "missing":
        del state["embed.W_E"]
    elif change == "unexpected":
        state["blocks.0.attn.W_X"] = torch.zeros(1)
    else:
        state["embed.W_E"] = torch.zeros(8, 4)
    with pytest.raises(RuntimeError, match=r"W_E|W_X"):
        model.load_state_dict(state)


def test_frozen_parameters_are_the_identity_and_get_no_gradient(make_model: MakeModel) -> None:
    model = make_model(d_head=4, freeze_W_V=True, freeze_W_O=True)
    model(some_tokens(model.settings, 4)).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    biases = {name for name, _ in model.named_parameters() if ".b_" in name}
    assert without == biases | {"blocks.0.attn.W_V", "blocks.0.attn.W_O"}
    for name in ("W_V", "W_O"):
        weight = model.get_parameter(f"blocks.0.attn.{name}")
        assert torch.equal(weight, torch.eye(4).double().expand(2, 4, 4))


def test_trained_biases_get_a_gradient(make_model: MakeModel) -> None:
    model = make_model(use_bias=True, normalization="LN")
    model(some_tokens(model.settings, 4)).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_parameter_counts_of_the_published_list_copy_model(make_model: MakeModel) -> None:
    model = make_model(
        **{"n_layers": 3, "n_heads": 1, "d_model": 8, "d_head": 8, **ATTENTION_ONLY},
        **{"d_vocab": 101, "d_vocab_out": 101, "masks": [COPY_100]},
        **{"freeze_W_V": True, "freeze_W_O": True},
    )
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    assert sum(size for size, _ in sizes) == 2621
    assert sum(size for size, trainable in sizes if trainable) == 2040


@pytest.mark.parametrize("freeze", [False, True])
def test_initial_weights_are_one_stream_in_the_published_order(
    make_settings: MakeSettings, freeze: bool
) -> None:
    settings = make_settings(n_layers=2, d_head=4, normalization="LN", freeze_W_V=freeze)
    w = Transformer(settings, torch.Generator().manual_seed(999)).state_dict()
    attention = [("W_Q", (2, 4, 4)), ("W_O", (2, 4, 4)), ("W_K", (2, 4, 4)), ("W_V", (2, 4, 4))]
    layer: list[tuple[str, tuple[int, ...]]] = [
        (f"attn.{name}", shape) for name, shape in attention
    ]
    layer += [("mlp.W_in", (4, 5)), ("mlp.W_out", (5, 4))]
    order: list[tuple[str, tuple[int, ...]]] = [("embed.W_E", (7, 4)), ("pos_embed.W_pos", (3, 4))]
    order += [(f"blocks.{number}.{name}", shape) for number in range(2) for name, shape in layer]
    order += [("unembed.W_U", (4, 6))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        drawn = {name: torch.normal(0.0, 0.8 / 4**0.5, shape) for name, shape in order}
    for name, value in drawn.items():
        frozen = freeze and name.endswith("W_V")  # drawn all the same, then overwritten
        assert torch.equal(w[name], torch.eye(4).expand(2, 4, 4) if frozen else value), name
    for name, value in w.items():
        if name not in drawn:
            assert torch.equal(value, torch.full_like(value, name.endswith(".w"))), name


BLIND = [("1..", "...", "111")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": BLIND}, "mask row 1 is '...'; a query must see at least one key"),
        ({"masks": [["1..", "11", "111"]]}, "mask row 1 is '11'; allowed are 3 characters 1 or ."),
        ({"masks": [["1.", "11", "11"]]}, "mask row 0 is '1.'; allowed are 3 characters 1 or ."),
        ({"masks": [["1..", "1x.", "111"]]}, "row 1 is '1x.'; allowed are 3 characters 1 or ."),
        ({"masks": []}, "model.masks: found []; "),
        ({"masks": "1"}, 'model.masks: found "1"; '),
        ({"freeze_W_V": True}, "freeze_W_V needs d_head = d_model, found 3 and 4"),
        ({"freeze_W_O": True}, "freeze_W_O needs d_head = d_model, found 3 and 4"),
        ({"d_mlp": None}, "d_mlp is None and act_fn relu; both or neither are null"),
        ({"act_fn": None}, "d_mlp is 5 and act_fn None; both or neither are null"),
        ({"act_fn": "tanh"}, "model.act_fn: found \"tanh\"; input should be 'relu' or 'gelu'"),
        ({"normalization": "RMS"}, "model.normalization: found \"RMS\"; input should be 'LN'"),
        ({"n_layers": 0}, "model.n_layers: found 0; input should be greater than or equal to 1"),
        ({"d_head": 2.0}, "model.d_head: found 2.0; input should be a valid integer"),
        ({"n_heads": True}, "model.n_heads: found true; input should be a valid integer"),
        ({"use_bias": 1}, "model.use_bias: found 1; input should be a valid boolean"),
        ({"d_modell": 4}, "model.d_modell: unknown key; allowed keys: n_layers, n_heads, "),
    ],
)
def test_bad_settings_are_named_in_one_line(
    make_settings: MakeSettings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_settings(**changes)
    assert str(caught.value).startswith("model")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shapes_in_signatures_are_checked(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(jaxtyping.TypeCheckError, match="tokens"):
        model(torch.zeros(2, 3))  # not integers
    with pytest.raises(jaxtyping.TypeCheckError, match="tokens"):
        model(torch.zeros(3, dtype=torch.long))  # no batch


def test_a_frozen_weight_is_not_loaded_with_other_values(
    make_model: Callable[..., Transformer],
) -> None:
    model = make_model(d_model=3, d_head=3, freeze_W_O=True)
    state = model.state_dict()
    model.load_state_dict(state)
    state["blocks.0.attn.W_O"] = state["blocks.0.attn.W_O"] * 2
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attn\.W_O: this model freezes it"):
        model.load_state_dict(state)


def test_what_the_settings_freeze_is_part_of_no_state(make_model: MakeModel) -> None:
    """A state may leave it out, also that of a model inside another module; not other values."""
    model = make_model(d_head=4, freeze_W_V=True)
    trained = {n: p.detach() * 2 for n, p in model.named_parameters() if p.requires_grad}
    assert {*model.state_dict()} - {*trained} == {*model.frozen()}
    model.requires_grad_(False)  # does not make it another model
    model.load_state_dict(trained)
    assert torch.equal(model.embed.W_E, trained["embed.W_E"])
    container = torch.nn.ModuleDict({"inner": model})
    container.load_state_dict({f"inner.{name}": value for name, value in trained.items()})
    other = model.state_dict() | {"blocks.0.attn.W_V": torch.zeros(2, 4, 4)}
    with pytest.raises(RuntimeError, match=r"inner\.blocks\.0\.attn\.W_V: this model freezes"):
        container.load_state_dict({f"inner.{name}": value for name, value in other.items()})
