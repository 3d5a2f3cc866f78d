"""The transformer against a forward written by hand, and its fast form against its full form."""

import copy
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from toycircuits.core.config import InputError
from toycircuits.core.products import dot_products, weighted_sums
from toycircuits.core.rows import LayerRows, rows_needed
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


def plain_forward(w: Mapping[str, Tensor], settings: TransformerSettings, tokens: Tensor) -> Tensor:
    """Every formula written out, with every weight and bias, frozen or not."""

    def norm(x: Tensor, name: str) -> Tensor:
        if settings.normalization is None:
            return x
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * w[f"{name}.w"] + w[f"{name}.b"]

    allowed = torch.tensor([[cell == "1" for cell in row] for row in settings.mask])
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
        **{"n_layers": n_layers, "n_heads": n_heads, "d_head": 4 if frozen else 3, "mask": mask},
        **{"normalization": normalization, "use_bias": use_bias, **mlp},
        **{f"freeze_{name}": True for name in frozen},
    )
    tokens = some_tokens(model.settings, batch=5)
    expected = plain_forward(model.state_dict(), model.settings, tokens)
    assert expected.std() > 0.1  # else all models would agree
    # float64, numbers of order 1 to 100: rounding leaves 1e-13 or so of them.
    assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def random_model(make_model: MakeModel, rng: random.Random, d_vocab: int) -> Transformer:
    n_ctx = rng.randint(1, 5)
    mask = []
    for _ in range(n_ctx):
        row = rng.choices("1.", k=n_ctx)
        row[rng.randrange(n_ctx)] = "1"  # no query is blind
        mask.append("".join(row))
    width = rng.choice([4, 20])  # the wider rows are multiplied as matrices
    frozen = {f"freeze_{name}": rng.random() < 0.3 for name in ("W_V", "W_O")}
    d_head = width if any(frozen.values()) else rng.choice([width, 3, 17])
    model = make_model(
        **{"seed": rng.randrange(1000), "mask": mask, "n_layers": rng.randint(1, 3)},
        **{"n_heads": rng.randint(1, 3), "d_model": width, "d_head": d_head, **rng.choice(MLPS)},
        **{"normalization": rng.choice([None, "LN"]), "use_bias": rng.random() < 0.5},
        **{"d_vocab": d_vocab, **frozen},
    )
    for parameter in model.parameters():  # so that scores stay as large as in the narrow model
        if parameter.requires_grad:
            parameter.data *= (4 / width) ** 0.5
    return model


def value_and_gradients(
    model: Transformer,
    tokens: Tensor,
    read: list[int],
    fast: bool,
    dtype: torch.dtype,
    watch: Callable[[str], bool] = lambda name: False,
) -> list[Tensor]:
    """Logits at `read`, and gradients of a random sum of them, in the fast or the hooked form.

    Args:
        watch: names of the hooks that somebody looks at in the fast form.
    """
    model = copy.deepcopy(model).to(dtype)
    with model.hooks(fwd_hooks=[(watch if fast else lambda name: True, lambda x, hook: None)]):
        logits = model(tokens, read=read) if fast else model(tokens)[:, read]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(dtype)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # b_K adds the same to all scores of a query: its gradient is zero, and the fast form knows it.
    total = (logits * direction).sum()
    found = torch.autograd.grad(total, parameters, materialize_grads=True)
    return [logits.detach().double(), *(gradient.double() for gradient in found)]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, as a share of the largest number of its tensor (of 1 at least)."""
    pairs = zip(found, expected, strict=True)
    return max((a - b).abs().max().item() / max(1.0, b.abs().max().item()) for a, b in pairs)


@pytest.mark.parametrize(
    ("d_vocab", "batch"),
    [(7, 3), (7, 30), (40, 170)],
    ids=["by-sequence", "by-pair-of-distinct-rows", "by-distinct-row"],
)
@pytest.mark.parametrize("seed", range(20))
def test_reading_some_positions_changes_neither_value_nor_gradient(
    make_model: MakeModel, seed: int, d_vocab: int, batch: int
) -> None:
    rng = random.Random(seed)
    model = random_model(make_model, rng, d_vocab)
    n_ctx = model.settings.n_ctx
    read = sorted(rng.sample(range(n_ctx), rng.randint(1, n_ctx)))
    tokens = some_tokens(model.settings, batch, seed)

    expected = value_and_gradients(model, tokens, read, fast=False, dtype=torch.float64)
    assert expected[1].abs().max() > 1e-3  # of W_E: the logits read do depend on the weights
    fast = value_and_gradients(model, tokens, read, fast=True, dtype=torch.float64)
    assert error(fast, expected) < 1e-10
    some = set(rng.sample(sorted(model.hook_dict), rng.randint(1, 4)))
    seen = value_and_gradients(model, tokens, read, True, torch.float64, some.__contains__)
    assert error(seen, expected) < 1e-10, some

    # In float32 a model may be badly conditioned; then the hooked form is no better.
    by_form = [
        value_and_gradients(model, tokens, read, fast, torch.float32) for fast in (False, True)
    ]
    hooked, fast32 = (error(values, expected) for values in by_form)
    assert fast32 < max(1e-5, 4 * hooked)


def test_read_positions_come_in_ascending_order_and_once(make_model: MakeModel) -> None:
    model = make_model()
    tokens = some_tokens(model.settings, 4)
    assert torch.equal(model(tokens, read=[2, 0, 2]), model(tokens, read=[0, 2]))


@pytest.mark.parametrize("batch", [5, 30, 300])
def test_hooks_see_the_rows_of_the_batch_that_are_read(make_model: MakeModel, batch: int) -> None:
    model = make_model(normalization="LN")
    _, cache = model.run_with_cache(some_tokens(model.settings, batch), read=[2])
    for name in ("hook_embed", "hook_pos_embed", "blocks.0.hook_resid_pre"):
        assert cache[name].shape == (batch, 3, 4)
    assert cache["blocks.0.ln1.hook_normalized"].shape == (batch, 3, 4)
    assert cache["blocks.0.attn.hook_q"].shape == (batch, 1, 2, 3)  # one query is read
    assert cache["blocks.0.attn.hook_k"].shape == (batch, 3, 2, 3)


@pytest.mark.parametrize("name", ["hook_embed", "hook_pos_embed", "blocks.0.ln1.hook_scale"])
def test_rows_before_attention_are_computed_once_a_distinct_pair(
    make_model: MakeModel, name: str
) -> None:
    """There are seven tokens, so that queries, keys and values are of 21 rows, not of 900."""
    model = make_model(**ATTENTION_ONLY, normalization="LN", d_model=4, n_heads=1, d_head=3)
    tokens = some_tokens(model.settings, 300)
    with FlopCounterMode(display=False) as counted:
        model(tokens, read=[2])
    after_attention = 300 * (3 * 4 + 4 * 6)
    products = 7 * 3 * 3 * 4 + 7 * 3 * 3 * 4 + 7 * 1 * 3 * 4
    scores = 7 * 21 * 3
    assert counted.get_total_flops() == 2 * (after_attention + products + scores)
    with (
        model.hooks(fwd_hooks=[(name, lambda x, hook: None)]),
        FlopCounterMode(display=False) as watched,
    ):
        model(tokens, read=[2])
    assert watched.get_total_flops() > counted.get_total_flops()


def test_fewer_positions_than_the_mask_has(make_model: MakeModel) -> None:
    model = make_model()
    tokens = some_tokens(model.settings, 5)
    assert_close(model(tokens[:, :2]), model(tokens)[:, :2])
    assert_close(model(tokens[:, :2], read=[1]), model(tokens, read=[1]))


def test_a_position_that_looks_ahead_needs_what_it_looks_at(make_model: MakeModel) -> None:
    model = make_model(mask=BACKWARDS)
    tokens = some_tokens(model.settings, 5)[:, :2]
    blind = "found 2 positions; position 0 may attend to none of them"
    with pytest.raises(ValueError, match=blind):
        model(tokens)
    with pytest.raises(ValueError, match=blind):
        model(tokens, read=[0])
    with pytest.raises(ValueError, match=blind):  # it sees position 0, which the layer below needs
        make_model(mask=BACKWARDS, n_layers=2)(tokens, read=[1])
    assert model(tokens, read=[1]).shape == (5, 1, 6)


def test_sums_of_products_are_for_small_tensors() -> None:
    """Ten thousand pairs of rows of 8 numbers would take eight times the memory of the scores."""
    q, k = torch.ones(1, 1, 100, 8, requires_grad=True), torch.ones(1, 1, 100, 8)
    for many in (dot_products(q, k), weighted_sums(q @ k.transpose(2, 3), k)):
        assert "View" in type(many.grad_fn).__name__  # of a batched matrix product
    assert "Sum" in type(dot_products(q[:, :, :3], k[:, :, :3]).grad_fn).__name__


def rows(inputs: str, queries: str, keys: str) -> LayerRows:
    return LayerRows(*(tuple(int(digit) for digit in part) for part in (inputs, queries, keys)))


@pytest.mark.parametrize(
    ("mask", "read", "expected"),
    [
        # The outputs see SEP and o1 alone; SEP sees the numbers; from there on all are needed.
        (
            COPY_100,
            (3, 4),
            [rows("01234", "01234", "0123"), rows("01234", "234", "0123"), rows("234", "34", "23")],
        ),
        # o1 does not see itself, but the residual stream carries it.
        (COPY_100, (3,), [rows("0123", "23", "012"), rows("23", "3", "2")]),
        (COPY_100, (2,), [rows("012", "2", "01")]),
        (COPY_10, (3,), [rows("0123", "23", "0123"), rows("23", "3", "23")]),
        (COPY_10, (1, 0), [rows("01", "01", "01"), rows("01", "01", "01")]),
        (CAUSAL, (2,), [rows("012", "2", "012")]),
        (BACKWARDS, (0,), [rows("012", "02", "12"), rows("02", "0", "2")]),
    ],
)
def test_rows_needed_by_hand(
    mask: tuple[str, ...], read: tuple[int, ...], expected: list[LayerRows]
) -> None:
    allowed = [[cell == "1" for cell in row] for row in mask]
    assert list(rows_needed(allowed, read, n_layers=len(expected))) == expected


def test_rows_that_are_not_needed_have_no_influence(make_model: MakeModel) -> None:
    """Position 2 of BACKWARDS sees position 1 alone, so that in one layer 0 does not matter."""
    model = make_model(mask=BACKWARDS)
    tokens = some_tokens(model.settings, 4)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 7
    assert torch.equal(model(tokens, read=[2]), model(other, read=[2]))
    assert not torch.equal(model(tokens, read=[1]), model(other, read=[1]))


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
    model = make_model(mask=mask)
    _, cache = model.run_with_cache(some_tokens(model.settings, 4))
    pattern = cache["blocks.0.attn.hook_pattern"]
    assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    assert torch.equal(pattern[0, 0] > 0, torch.tensor(model.settings.allowed))


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
        **{"d_vocab": 101, "d_vocab_out": 101, "mask": COPY_100},
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": ["1..", "...", "111"]}, "mask row 1 is '...'; a query must see at least one key"),
        ({"mask": ["1..", "11", "111"]}, "mask row 1 is '11'; allowed are 3 characters 1 or ."),
        ({"mask": ["1.", "11", "11"]}, "mask row 0 is '1.'; allowed are 3 characters 1 or ."),
        ({"mask": ["1..", "1x.", "111"]}, "mask row 1 is '1x.'; allowed are 3 characters 1 or ."),
        ({"mask": []}, "model.mask: found []; "),
        ({"mask": "1"}, 'model.mask: found "1"; '),
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


@pytest.mark.parametrize("read", [(), (-1,), (0, 3)])
def test_positions_that_are_not_there_cannot_be_read(read: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"allowed are positions 0 to 2"):
        rows_needed([[True] * 3] * 3, read, n_layers=1)
