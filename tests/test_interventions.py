"""An ablation replaces what it says, nothing else, and leaves nothing behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from toycircuits.core.interventions import Ablation, ablated, mean_activations
from toycircuits.core.transformer import Transformer

MakeModel = Callable[..., Transformer]
Z, PATTERN = "blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern"
SCORES, W_O = "blocks.0.attn.hook_attn_scores", "blocks.0.attn.W_O"
MASK = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
METHODS = [
    Ablation("z", Z, "zero", layer=0, head=0),
    Ablation("z", Z, "mean", layer=0),
    Ablation("pattern", SCORES, "uniform", layer=0),
    Ablation("W_O", W_O, "weight_zero", layer=0),
]


@pytest.fixture
def model(make_model: MakeModel) -> Transformer:
    return make_model(n_layers=2, use_bias=True)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(7, (6, 3), generator=torch.Generator().manual_seed(0))


def cache_of(model: Transformer, tokens: Tensor, **options: Any) -> dict[str, Tensor]:
    return dict(model.run_with_cache(tokens, **options)[1].items())


def traces(model: Transformer) -> int:
    return sum(
        len(point.fwd_hooks) + len(point.bwd_hooks) + len(point._forward_hooks)
        for point in model.hook_dict.values()
    )


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", ["hook_z", "hook_v", "hook_pattern"])
def test_zero_ablation_of_one_head_zeroes_exactly_its_slice(
    model: Transformer, tokens: Tensor, name: str, head: int
) -> None:
    name = f"blocks.1.attn.{name}"
    axis = 1 if name.endswith("pattern") else 2
    before = cache_of(model, tokens)
    with ablated(model, [Ablation("head", name, "zero", head=head)]):
        after = cache_of(model, tokens)
    kept, gone = (after[name].select(axis, index) for index in (1 - head, head))
    assert torch.equal(kept, before[name].select(axis, 1 - head))
    assert not gone.any()
    assert before[name].select(axis, head).abs().max() > 0.1
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    downstream = {"z": {"hook_z"}, "v": {"hook_v", "hook_z"}, "pattern": {"hook_pattern", "hook_z"}}
    own = {f"blocks.1.attn.{key}" for key in downstream[name.rpartition("_")[2]]}
    rest = {"attn_out", "resid_mid", "mlp_out", "resid_post"}
    rest = {f"blocks.1.hook_{key}" for key in rest}
    assert changed == own | rest | {"blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"}


def test_zero_ablation_without_a_head_zeroes_everything(model: Transformer, tokens: Tensor) -> None:
    name = "blocks.0.hook_mlp_out"
    with ablated(model, [Ablation("mlp_out", name, "zero", layer=0)]):
        after = cache_of(model, tokens)
    assert not after[name].any()
    assert torch.equal(after["blocks.0.hook_resid_post"], after["blocks.0.hook_resid_mid"])


@pytest.mark.parametrize("name", [Z, PATTERN, "blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"])
def test_mean_ablation_of_a_constant_changes_nothing(
    model: Transformer, tokens: Tensor, name: str
) -> None:
    constant = tokens[:1].expand(6, 3)
    means = mean_activations(model, lambda: model(constant), [name])
    with ablated(model, [Ablation("x", name, "mean")], means):
        after, others = model(constant), model(tokens)
    # Six equal numbers have their mean as their value, but for the rounding of their float64 sum.
    assert_close(after, model(constant), rtol=1e-12, atol=1e-12)
    assert (others - model(tokens)).abs().max() > 1e-3


def test_mean_ablation_puts_the_mean_everywhere(model: Transformer, tokens: Tensor) -> None:
    means = mean_activations(model, lambda: model(tokens), [Z, PATTERN])
    before = cache_of(model, tokens)
    assert set(means) == {Z, PATTERN}
    assert_close(means[Z], before[Z].sum(0, keepdim=True) / 6)
    with ablated(model, [Ablation("z", Z, "mean", head=1)], means):
        after = cache_of(model, tokens)
    assert torch.equal(after[Z][:, :, 0], before[Z][:, :, 0])
    assert torch.equal(after[Z][:, :, 1], means[Z].expand(6, -1, -1, -1)[:, :, 1])


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["soft", "saturated"])
@pytest.mark.parametrize("head", [None, 0, 1])
def test_uniform_attention_is_one_over_n_of_the_allowed_keys(
    model: Transformer, tokens: Tensor, head: int | None, scale: float
) -> None:
    with torch.no_grad():
        model.get_parameter("blocks.0.attn.W_Q").mul_(scale)
    before = cache_of(model, tokens)[PATTERN]
    if scale > 1:
        assert (before[..., -1, :] == 0).any()  # softmax has lost an allowed key altogether
    with ablated(model, [Ablation("pattern", SCORES, "uniform", head=head)]):
        after = cache_of(model, tokens)[PATTERN]
    uniform = MASK.double() / MASK.sum(1, keepdim=True)
    for index in range(2):
        expected = before[:, index] if head == 1 - index else uniform.expand(6, 3, 3)
        # exp(0) / n: exact in all but the division, so that a rounding of float64 is left.
        assert_close(after[:, index], expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("head", [None, 1])
def test_a_zeroed_weight_is_zero_inside_and_as_before_outside(
    model: Transformer, tokens: Tensor, head: int | None
) -> None:
    weight = model.get_parameter(W_O)
    before, logits = weight.detach().clone(), model(tokens)
    with ablated(model, [Ablation("W_O", W_O, "weight_zero", head=head)]):
        inside = weight.detach().clone()
        assert not torch.equal(model(tokens), logits)
    if head is None:
        assert not inside.any()
    else:
        assert not inside[1].any()
        assert torch.equal(inside[0], before[0])
    assert torch.equal(weight, before)
    assert weight is model.get_parameter(W_O)
    assert weight.requires_grad
    assert torch.equal(model(tokens), logits)


def test_zeroing_an_output_matrix_equals_zeroing_what_it_reads(
    model: Transformer, tokens: Tensor
) -> None:
    with ablated(model, [Ablation("W_O", W_O, "weight_zero", head=0)]):
        by_weight = model(tokens)
    with ablated(model, [Ablation("z", Z, "zero", head=0)]):
        by_activation = model(tokens)
    assert_close(by_weight, by_activation, rtol=1e-12, atol=1e-12)  # float64, order of sums


def test_several_ablations_are_in_force_at_once(model: Transformer, tokens: Tensor) -> None:
    names = [f"blocks.{layer}.hook_{part}_out" for layer in range(2) for part in ("attn", "mlp")]
    with ablated(model, [Ablation("all", name, "zero") for name in names]):
        after = cache_of(model, tokens)
    embedded = after["hook_embed"] + after["hook_pos_embed"]
    assert_close(after["blocks.1.hook_resid_post"], embedded)


@pytest.mark.parametrize("ablation", [METHODS[0], METHODS[2], METHODS[3]])
def test_ablations_work_on_the_rows_that_are_read(
    make_model: MakeModel, tokens: Tensor, ablation: Ablation
) -> None:
    model = make_model()
    with ablated(model, [ablation]):
        found, expected = model(tokens, read=[2]), model(tokens)[:, [2]]
    assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64, order of sums
    assert not torch.equal(found, model(tokens, read=[2]))


@pytest.mark.parametrize("ablation", METHODS, ids=lambda ablation: ablation.method)
def test_nothing_is_left_after_an_error(
    model: Transformer, tokens: Tensor, ablation: Ablation
) -> None:
    logits = model(tokens)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    means = mean_activations(model, lambda: model(tokens), [Z])

    def fail() -> None:
        with ablated(model, [ablation, METHODS[3]], means):
            assert not torch.equal(model(tokens), logits)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert traces(model) == 0
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(tokens), logits)


def test_hooks_of_others_stay(model: Transformer, tokens: Tensor) -> None:
    seen = []

    def look(activation: Tensor, hook: object) -> None:
        seen.append(activation.abs().sum().item())

    with model.hooks(fwd_hooks=[(Z, look)]):
        with ablated(model, [METHODS[0]]):
            model(tokens)
        model(tokens)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "ablation",
    [
        Ablation("z", "blocks.0.attn.hook_zz", "zero"),
        Ablation("z", "blocks.7.attn.hook_z", "uniform"),
        Ablation("W_O", "blocks.0.attn.W_OO", "weight_zero"),
        Ablation("z", Z, "mean"),  # no mean is given
    ],
)
def test_an_unknown_place_is_a_key_error(model: Transformer, ablation: Ablation) -> None:
    before = model.get_parameter(W_O).detach().clone()
    with (
        pytest.raises(KeyError, match=ablation.name),
        ablated(model, [METHODS[3], METHODS[0], ablation]),
    ):
        pytest.fail("the body must not run")
    assert traces(model) == 0
    assert torch.equal(model.get_parameter(W_O), before)


def test_means_of_an_unknown_place_are_a_key_error(model: Transformer, tokens: Tensor) -> None:
    with pytest.raises(KeyError):
        mean_activations(model, lambda: model(tokens), [Z, "blocks.0.hook_nothing"])
    assert traces(model) == 0


@pytest.mark.parametrize(
    ("layer", "head", "expected"), [(None, None, ("all", "all")), (0, 1, (0, 1))]
)
def test_columns_say_which_ablation_it_was(
    layer: int | None, head: int | None, expected: tuple[object, object]
) -> None:
    columns = Ablation("z", Z, "zero", layer, head).columns
    component, method = {"component": "z"}, {"method": "zero"}
    assert columns == component | dict(zip(("layer", "head"), expected, strict=True)) | method
