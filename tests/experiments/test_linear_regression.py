"""In-context linear regression: the task and the fast forward."""

import math
from typing import Any

import pytest
import torch
from made_regression import (
    LENGTHS,
    MEASURE,
    MODEL,
    TRAIN,
    make_model,
    sequences,
    settings,
    stack,
)
from torch import Tensor, nn

from toycircuits.core.config import InputError
from toycircuits.experiments.linear_regression import model, task
from toycircuits.experiments.linear_regression.metrics import measure as metrics


def test_weights_and_stream_are_those_of_plain_torch_code() -> None:
    """Linear layers made in the order q, k, v, o after one `manual_seed`."""
    torch.manual_seed(7)
    linear = [nn.Linear(6, 12, bias=False) for _ in range(3)] + [nn.Linear(12, 1, bias=False)]
    x = torch.randn(128, 40, 5)
    generator = torch.Generator().manual_seed(7)
    made = make_model(settings())
    made._init_weights(generator)
    layer = made.layers[0]
    for name, projection in zip("QKV", linear, strict=False):
        assert torch.equal(layer.weight(name)[1], projection.weight[6:].T)
    assert torch.equal(layer.weight("O")[1, :, 0], linear[3].weight[0, 6:])
    drawn = task.sample(128, settings(), generator)
    assert torch.equal(drawn["z"][:, :, :5], x)


# Task


def test_sequences_are_linear_with_noise_of_the_right_size() -> None:
    n, d = 2000, 5
    generator = torch.Generator().manual_seed(3)
    made = task.sample(n, settings(delta=0.3, n_examples=12), generator)
    x, y = made["z"][:, :, :-1].double(), made["z"][:, :, -1].double()
    generator.manual_seed(3)
    parts = torch.empty(n * (12 * d + d + d)).normal_(generator=generator)
    x_q, beta = parts[n * 12 * d :].view(2, n, d).double()
    assert torch.allclose(made["z_q"][:, :-1].double(), x_q)
    assert (made["z_q"][:, -1] == 0).all()
    assert torch.allclose(made["y_q"].double(), (x_q * beta).sum(1), atol=1e-5)
    noise = y - torch.einsum("nld,nd->nl", x, beta)
    # The standard deviation of 24,000 normal numbers is known to 0.5%.
    assert noise.std().item() == pytest.approx(math.sqrt(d) * 0.3, rel=0.02)


def test_blocks_are_the_numbers_of_single_steps() -> None:
    data, train = settings(n_examples=7), task.TrainSettings.parse(TRAIN, "train")
    stream = task.batches({"z": torch.zeros(1)}, data, train, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    for _ in range(2 * task.BLOCK):
        batch, alone = stream.next(), task.sample(128, data, generator)
        assert all(torch.equal(batch[name], alone[name]) for name in alone)


def test_validation_sequences_follow_the_seed() -> None:
    first, again = (task.generate(settings(), torch.Generator().manual_seed(0)) for _ in range(2))
    assert first["z"].shape == (96, 40, 6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    made = make_model(settings())
    logged = task.evaluate(made, first)["validation_loss"]
    assert logged == pytest.approx(task.loss(made, first).item())


# Model


def textbook(made: model.InContextAttention, z: Tensor, z_q: Tensor) -> Tensor:
    """One sequence and one token at a time, from the weights alone."""
    shape = made.settings.stack
    tokens = torch.cat([z, z_q.unsqueeze(0)])
    for number, layer in enumerate(made.layers):
        new = []
        for i in range(len(tokens)):
            out = torch.zeros(layer.weight("O").shape[2], dtype=z.dtype)
            for head in range(made.settings.n_heads):
                if i == 0:
                    continue  # there is nothing before it
                W_Q, W_K, W_V, W_O = (layer.weight(name)[head] for name in "QKVO")
                scores = tokens[:i] @ W_K @ (tokens[i] @ W_Q) / math.sqrt(z.shape[1])
                out = out + scores.softmax(0) @ (tokens[:i] @ W_V) @ W_O
            new.append(out)
        if shape is None:
            return new[-1]
        stacked = torch.stack(new)
        tokens = tokens + stacked if shape.residual else stacked
        assert number < shape.n_layers
    assert made.W_read is not None
    return tokens[-1] @ made.W_read


@pytest.mark.parametrize("form", ["hooked", "factored", "batch last"])
@pytest.mark.parametrize(
    "shape",
    [None, stack(), stack(tied=True), stack(residual=True), stack(True, True, n_layers=3)],
    ids=str,
)
def test_forward_is_the_textbook_form_in_value_and_gradient(
    shape: dict[str, Any] | None, form: str
) -> None:
    made = make_model(settings(), n_heads=3, stack=shape).double()
    for parameter in made.parameters():  # larger than at the start, so that patterns are sharp
        parameter.data *= 2
    some = sequences(4, n_examples=6)
    expected = torch.stack(
        [textbook(made, *pair) for pair in zip(some["z"], some["z_q"], strict=True)]
    )
    if form == "batch last":  # which only compiled code uses
        predicted = made._batch_last(some["z"], some["z_q"])
    else:
        predicted = made(some["z"], some["z_q"], factored=form == "factored")
    assert predicted.shape == (4, 1)
    assert torch.allclose(predicted, expected, rtol=0, atol=1e-10)
    parameters = list(made.parameters())
    pairs = zip(
        torch.autograd.grad(expected.pow(2).sum(), parameters),
        torch.autograd.grad(predicted.pow(2).sum(), parameters),
        strict=True,
    )
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) and a.abs().max() > 1e-3 for a, b in pairs)


@pytest.mark.parametrize("shape", [None, stack(), stack(tied=True, residual=True)], ids=str)
def test_lengths_read_the_first_examples_alone(shape: dict[str, Any] | None) -> None:
    made = make_model(settings(), stack=shape).double()
    some = sequences()
    with torch.no_grad():
        predicted = made(some["z"], some["z_q"], LENGTHS)
        for column, length in enumerate(LENGTHS):
            alone = made(some["z"][:, :length], some["z_q"])[:, 0]
            assert torch.allclose(predicted[:, column], alone, atol=1e-12)
    assert not torch.allclose(predicted[:, 0], predicted[:, 1])


def test_hooks_have_the_usual_names_and_shapes() -> None:
    made = make_model(settings(), stack=stack())
    some = task.sample(3, settings(n_examples=7), torch.Generator().manual_seed(0))
    _, cache = made.run_with_cache(some["z"], some["z_q"])
    shapes = {name: tuple(cache[f"blocks.0.attn.hook_{name}"].shape) for name in "qkvz"}
    assert shapes == {"q": (3, 7, 2, 6), "k": (3, 7, 2, 6), "v": (3, 7, 2, 6), "z": (3, 7, 2, 6)}
    assert cache["blocks.1.attn.hook_result"].shape == (3, 1, 2, 6)
    first, last = (cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(2))
    assert first.shape == (3, 2, 7, 7)  # queries: tokens 1 to 6 and z_q; keys: tokens 0 to 6
    assert (first.triu(1) == 0).all()
    assert last.shape == (3, 2, 1, 7)
    assert torch.allclose(last.sum(-1), torch.ones(3, 2, 1))
    _, in_training = made.run_with_cache(some["z"], some["z_q"], factored=True)
    assert in_training.keys() == cache.keys()


def test_initialisations() -> None:
    eye = torch.eye(6)
    random = make_model(settings()).layers[0]
    small = make_model(settings(), init="small_id").layers[0]
    small_qk = make_model(settings(), init="small_id_qk").layers[0]
    opposite = make_model(settings(), init="oppo_small_id").layers[0]
    for name in "QKV":
        assert torch.equal(small.weight(name), eye.expand(2, -1, -1) * 1e-6)
    for name in "QK":
        assert torch.equal(small_qk.weight(name), eye.expand(2, -1, -1) * 1e-4)
    assert torch.equal(opposite.weight("Q"), torch.stack([eye, -eye]) * 1e-6)
    assert torch.equal(opposite.weight("K"), torch.stack([eye, eye]) * 1e-6)
    for layer in (small_qk, opposite):
        assert torch.equal(layer.weight("V"), random.weight("V"))
    for layer in (small, small_qk, opposite):
        assert torch.equal(layer.weight("O"), random.weight("O"))


def test_tied_layers_have_one_set_of_weights() -> None:
    tied, untied = (make_model(settings(), stack=stack(tied=shared)) for shared in (True, False))
    assert sorted(tied.state_dict()) == [
        *("W_read", "blocks.0.attn.W_K", "blocks.0.attn.W_O"),
        *("blocks.0.attn.W_Q", "blocks.0.attn.W_V"),
    ]
    assert len(untied.state_dict()) == 9


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (
            model.ModelSettings,
            MODEL | {"init": "oppo_small_id", "n_heads": 3},
            "key: n_heads: found 3; allowed with init oppo_small_id are even numbers",
        ),
        (model.ModelSettings, MODEL | {"stack": stack(n_layers=1)}, "key.stack.n_layers: found 1"),
        (task.TrainSettings, TRAIN | {"batch_size": 100}, "key.batch_size: found 100"),
        (
            metrics.MeasureSettings,
            MEASURE | {"lengths": {"first": 5, "last": 4, "step": 1}},
            "last: found 4; allowed is at least first, 5",
        ),
    ],
)
def test_bad_settings_are_named(cls: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        cls.parse(values, "key")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Planted heads and estimators
