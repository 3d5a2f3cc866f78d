"""The fast form, which computes only rows that are read, against the full form."""

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
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from toycircuits.core.products import dot_products, weighted_sums
from toycircuits.core.rows import LayerRows, rows_needed
from toycircuits.core.transformer import Transformer


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
        **{"seed": rng.randrange(1000), "masks": [mask], "n_layers": rng.randint(1, 3)},
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
    model = make_model(masks=[BACKWARDS])
    tokens = some_tokens(model.settings, 4)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 7
    assert torch.equal(model(tokens, read=[2]), model(other, read=[2]))
    assert not torch.equal(model(tokens, read=[1]), model(other, read=[1]))


@pytest.mark.parametrize("read", [(), (-1,), (0, 3)])
def test_positions_that_are_not_there_cannot_be_read(read: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"allowed are positions 0 to 2"):
        rows_needed([[True] * 3] * 3, read, n_layers=1)
