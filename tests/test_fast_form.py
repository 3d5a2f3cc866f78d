"""The fast form, which computes what is read and nothing twice, against the form with hooks."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from made_models import (
    ATTENTION_ONLY,
    BACKWARDS,
    CAUSAL,
    COPY_10,
    COPY_100,
    MLPS,
    MakeModel,
    some_tokens,
)
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from toycircuits.core import fast_form
from toycircuits.core.products import dot_products, weighted_sums
from toycircuits.core.rows import LayerRows, rows_needed, sources
from toycircuits.core.transformer import NARROW, Transformer


def random_masks(rng: random.Random, n_ctx: int, n_layers: int, blind: bool) -> list[list[str]]:
    """One mask for all layers, or one for each."""
    masks = []
    for _ in range(rng.choice([1, n_layers])):
        rows = [rng.choices("1.", weights=[1, rng.choice([1, 3])], k=n_ctx) for _ in range(n_ctx)]
        for row in rows:
            if not blind:
                row[rng.randrange(n_ctx)] = "1"
        masks.append(["".join(row) for row in rows])
    return masks


def random_model(make_model: MakeModel, rng: random.Random, d_vocab: int) -> Transformer:
    n_ctx, n_layers = rng.randint(1, 6), rng.randint(1, 3)
    blind = rng.random() < 0.4
    fixed = [rng.randrange(d_vocab) if rng.random() < 0.5 else None for _ in range(n_ctx)]
    width = rng.choice([4, 20, NARROW, NARROW])  # wider rows are treated otherwise
    frozen = {f"freeze_{name}": rng.random() < 0.3 for name in ("W_V", "W_O")}
    d_head = width if any(frozen.values()) else rng.choice([width, 3, 17])
    model = make_model(
        **{"seed": rng.randrange(1000), "masks": random_masks(rng, n_ctx, n_layers, blind)},
        **{"blind_queries": blind, "fixed_tokens": fixed, "n_layers": n_layers},
        **{"n_heads": rng.choice([1, 1, 2, 3]), "d_model": width, "d_head": d_head},
        **{"normalization": rng.choice([None, "LN"]), "use_bias": rng.random() < 0.5},
        **{"d_vocab": d_vocab, "d_vocab_out": rng.choice([3, 30]), **rng.choice(MLPS), **frozen},
    )
    for parameter in model.parameters():  # so that scores stay as large as in the narrow model
        if parameter.requires_grad:
            parameter.data *= (4 / width) ** 0.5
    return model


def task_tokens(model: Transformer, batch: int, seed: int) -> Tensor:
    """Random tokens that hold the fixed ones."""
    tokens = some_tokens(model.settings, batch, seed)
    for position, token in enumerate(model.settings.fixed_tokens):
        if token is not None:
            tokens[:, position] = token
    return tokens


def value_and_gradients(
    model: Transformer,
    tokens: Tensor,
    read: list[int],
    fast: bool,
    dtype: torch.dtype,
    watch: Callable[[str], bool] = lambda name: False,
    fixed: bool = False,
) -> list[Tensor]:
    """Logits at `read`, and gradients of a random sum of them, in the fast or the hooked form.

    Args:
        watch: names of the hooks that somebody looks at in the fast form.
    """
    model = copy.deepcopy(model).to(dtype)
    with model.hooks(fwd_hooks=[(watch if fast else lambda name: True, lambda x, hook: None)]):
        logits = model(tokens, read=read, fixed=fixed) if fast else model(tokens)[:, read]
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
@pytest.mark.parametrize("seed", range(40))
def test_reading_some_positions_changes_neither_value_nor_gradient(
    make_model: MakeModel, seed: int, d_vocab: int, batch: int
) -> None:
    rng = random.Random(seed)
    model = random_model(make_model, rng, d_vocab)
    n_ctx = model.settings.n_ctx
    read = sorted(rng.sample(range(n_ctx), rng.randint(1, n_ctx)))
    tokens = task_tokens(model, batch, seed)

    expected = value_and_gradients(model, tokens, read, fast=False, dtype=torch.float64)
    assert expected[0].std() > 1e-3 or read == [0]  # else all models would agree
    for fixed in (False, True):
        fast = value_and_gradients(model, tokens, read, True, torch.float64, fixed=fixed)
        assert error(fast, expected) < 1e-10, fixed
    some = set(rng.sample(sorted(model.hook_dict), rng.randint(1, 4)))
    seen = value_and_gradients(model, tokens, read, True, torch.float64, some.__contains__)
    assert error(seen, expected) < 1e-10, some

    # In float32 a model may be badly conditioned; then the form with hooks is no better.
    by_form = [
        value_and_gradients(model, tokens, read, fast, torch.float32, fixed=True)
        for fast in (False, True)
    ]
    hooked, fast32 = (error(values, expected) for values in by_form)
    assert fast32 < max(1e-5, 4 * hooked)


def test_read_positions_come_in_ascending_order_and_once(make_model: MakeModel) -> None:
    model = make_model()
    tokens = some_tokens(model.settings, 4)
    assert torch.equal(model(tokens, read=[2, 0, 2]), model(tokens, read=[0, 2]))


@pytest.mark.parametrize("batch", [5, 30, 300])
def test_hooks_see_all_rows_of_the_batch(make_model: MakeModel, batch: int) -> None:
    model = make_model(normalization="LN", fixed_tokens=[None, 1, None])
    tokens = task_tokens(model, batch, seed=0)
    logits, cache = model.run_with_cache(tokens, read=[2], fixed=True)
    assert logits.shape == (batch, 1, 6)
    whole = model.run_with_cache(tokens)[1]
    assert whole["blocks.0.ln1.hook_normalized"].shape == (batch, 3, 4)
    for name, value in whole.items():
        assert torch.equal(cache[name], value), name


def flops(model: Transformer, tokens: Tensor, fixed: bool = False) -> int:
    plan = model._plan((2,), tokens, fixed)  # the counter sets hooks, so call the fast form itself
    with FlopCounterMode(display=False) as counted:
        fast_form.logits(model, tokens, plan)
    total: int = counted.get_total_flops()
    return total


def test_rows_before_attention_are_computed_once_for_each_token(make_model: MakeModel) -> None:
    """There are seven tokens, so that queries, keys and values are of 21 rows, not of 900."""
    model = make_model(**ATTENTION_ONLY, normalization="LN", d_model=4, n_heads=1, d_head=3)
    tokens = some_tokens(model.settings, 300)
    after_attention = 300 * (3 * 4 + 4 * 6)
    products = 7 * 3 * 3 * 4 + 7 * 3 * 3 * 4 + 7 * 1 * 3 * 4
    scores = 7 * 21 * 3
    assert flops(model, tokens) == 2 * (after_attention + products + scores)


def test_rows_that_are_the_same_in_all_sequences_are_computed_once(make_model: MakeModel) -> None:
    """The query and one key are fixed. A query that is fixed forms no keys."""
    model = make_model(
        **{**ATTENTION_ONLY, "d_model": NARROW, "n_heads": 1, "d_head": 3},
        fixed_tokens=[None, 1, 1],
    )
    tokens = task_tokens(model, 20, seed=0)  # too few for tables
    query = 1 * (NARROW * 3 + 3 * NARROW)
    scores = (20 + 2) * NARROW
    values = (20 + 2) * NARROW * 3
    after_attention = 20 * (3 * NARROW + NARROW * 6)
    assert flops(model, tokens, fixed=True) == 2 * (query + scores + values + after_attention)
    assert flops(model, tokens) > flops(model, tokens, fixed=True)


def test_fixed_tokens_are_not_looked_at(make_model: MakeModel) -> None:
    model = make_model(d_model=NARROW, fixed_tokens=[None, 3, None])
    tokens = task_tokens(model, 5, seed=0)
    other = tokens.clone()
    other[:, 1] = 4
    assert torch.equal(model(other, read=[2], fixed=True), model(tokens, read=[2], fixed=True))
    assert not torch.equal(model(other, read=[2]), model(tokens, read=[2]))


@pytest.mark.parametrize("seed", range(8))
def test_parameters_without_gradients_are_read_all_the_same(
    make_model: MakeModel, seed: int
) -> None:
    """Analyses detach parameters, and stack those of several models."""
    rng = random.Random(seed)
    models = [random_model(make_model, rng, d_vocab=7)]
    models.append(copy.deepcopy(models[0]))
    for model in models:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.rand_like(parameter)
    tokens = task_tokens(models[0], 5, seed)
    read = [models[0].settings.n_ctx - 1]
    expected = torch.stack([model(tokens)[:, read] for model in models])
    detached = [{n: p.detach() for n, p in model.named_parameters()} for model in models]

    def call(parameters: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(models[0], parameters, (tokens, read, True))
        return found

    stacked = {name: torch.stack([each[name] for each in detached]) for name in detached[0]}
    assert_close(torch.vmap(call)(stacked), expected, rtol=1e-9, atol=1e-9)
    assert_close(call(detached[1]), expected[1], rtol=1e-9, atol=1e-9)
    models[1].requires_grad_(False)
    assert_close(models[1](tokens, read=read, fixed=True), expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("read", [None, [2]])
def test_a_first_call_in_inference_mode_leaves_gradients_possible(
    make_model: MakeModel, read: list[int] | None
) -> None:
    model = make_model()
    tokens = some_tokens(model.settings, 4)
    with torch.inference_mode():
        model(tokens, read=read)
    model(tokens, read=read).sum().backward()
    assert model.embed.W_E.grad is not None


def test_fewer_positions_than_the_mask_has(make_model: MakeModel) -> None:
    model = make_model()
    tokens = some_tokens(model.settings, 5)
    assert_close(model(tokens[:, :2]), model(tokens)[:, :2])
    assert_close(model(tokens[:, :2], read=[1]), model(tokens, read=[1]))


def test_a_position_that_looks_ahead_needs_what_it_looks_at(make_model: MakeModel) -> None:
    model = make_model(masks=[BACKWARDS])
    tokens = some_tokens(model.settings, 5)[:, :2]
    blind = "found 2 positions; position 0 may attend to none of them"
    with pytest.raises(ValueError, match=blind):
        model(tokens)
    with pytest.raises(ValueError, match=blind):
        model(tokens, read=[0])
    with pytest.raises(ValueError, match=blind):  # it sees position 0, which the layer below needs
        make_model(masks=[BACKWARDS], n_layers=2)(tokens, read=[1])
    assert model(tokens, read=[1]).shape == (5, 1, 6)


def test_sums_of_products_are_for_small_tensors() -> None:
    """Ten thousand pairs of rows of 8 numbers would take eight times the memory of the scores."""
    q, k = torch.ones(1, 1, 100, 8, requires_grad=True), torch.ones(1, 1, 100, 8)
    for many in (dot_products(q, k), weighted_sums(q @ k.transpose(2, 3), k)):
        assert "View" in type(many.grad_fn).__name__  # of a batched matrix product
    assert "Sum" in type(dot_products(q[:, :, :3], k[:, :, :3]).grad_fn).__name__


def rows(inputs: str, queries: str, keys: str) -> LayerRows:
    return LayerRows(*(tuple(int(digit) for digit in part) for part in (inputs, queries, keys)))


def as_booleans(mask: tuple[str, ...]) -> list[list[bool]]:
    return [[cell == "1" for cell in row] for row in mask]


BLIND = ("1....", "1....", "11...", ".....", ".....")  # the outputs see nothing


@pytest.mark.parametrize(
    ("masks", "read", "expected"),
    [
        # The outputs see SEP and o1 alone; SEP sees the numbers; from there on all are needed.
        (
            [COPY_100] * 3,
            (3, 4),
            [rows("01234", "01234", "0123"), rows("01234", "234", "0123"), rows("234", "34", "23")],
        ),
        # o1 does not see itself, but the residual stream carries it.
        ([COPY_100] * 2, (3,), [rows("0123", "23", "012"), rows("23", "3", "2")]),
        ([COPY_100], (2,), [rows("012", "2", "01")]),
        ([COPY_10] * 2, (3,), [rows("0123", "23", "0123"), rows("23", "3", "23")]),
        ([COPY_10] * 2, (1, 0), [rows("01", "01", "01"), rows("01", "01", "01")]),
        ([CAUSAL], (2,), [rows("012", "2", "012")]),
        ([BACKWARDS] * 2, (0,), [rows("012", "02", "12"), rows("02", "0", "2")]),
        ([BLIND, COPY_100], (4,), [rows("01234", "234", "01"), rows("234", "4", "23")]),
        ([BLIND], (3,), [rows("3", "3", "")]),
    ],
)
def test_rows_needed_by_hand(
    masks: list[tuple[str, ...]], read: tuple[int, ...], expected: list[LayerRows]
) -> None:
    assert list(rows_needed([as_booleans(mask) for mask in masks], read)) == expected


def test_sources_of_the_list_copy_model_by_hand() -> None:
    """d1 d2 SEP o1 o2, of which the last three are fixed; three layers."""
    levels = sources([as_booleans(COPY_100)] * 3, [False, False, True, True, True])
    found = ["/".join("".join(map(str, sorted(row))) for row in level) for level in levels]
    assert found == ["0/1///", "0/01/01//", "0/01/01/01/01", "0/01/01/01/01"]


def test_rows_that_are_not_needed_have_no_influence(make_model: MakeModel) -> None:
    """Position 2 of BACKWARDS sees position 1 alone, so that in one layer 0 does not matter."""
    model = make_model(masks=[BACKWARDS])
    tokens = some_tokens(model.settings, 4)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 7
    assert torch.equal(model(tokens, read=[2]), model(other, read=[2]))
    assert not torch.equal(model(tokens, read=[1]), model(other, read=[1]))


@pytest.mark.parametrize("read", [(), (-1,), (0, 3)])
def test_positions_that_are_not_there_cannot_be_read(read: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"allowed are positions 0 to 2"):
        rows_needed([[[True] * 3] * 3], read)
