"""In-context linear regression: the published stream, the fast forward, and planted heads."""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor, nn

from toycircuits.core import training
from toycircuits.core.config import InputError
from toycircuits.experiments.linear_regression import ablations, model, task
from toycircuits.experiments.linear_regression.figures import draw as figures
from toycircuits.experiments.linear_regression.figures.circuits import circuits as draw_circuits
from toycircuits.experiments.linear_regression.figures.context import ESTIMATORS
from toycircuits.experiments.linear_regression.figures.labels import DESCENT, named
from toycircuits.experiments.linear_regression.metrics import measure as metrics
from toycircuits.experiments.linear_regression.metrics.circuits import (
    circuits,
    head_rows,
    sums,
    weights_of,
)
from toycircuits.experiments.linear_regression.metrics.errors import mean_and_error, transformer
from toycircuits.experiments.linear_regression.metrics.estimators import (
    best_rate,
    gradient_descent,
    kernel,
    ridge,
)
from toycircuits.experiments.linear_regression.metrics.one_head import (
    one_head_sums,
    one_head_table,
)
from toycircuits.experiments.linear_regression.metrics.training_start import training_start

DATA = {"d": 5, "n_examples": 40, "delta": 0.01, "n_validation": 96, "seed": 0}
MODEL = {"n_heads": 2, "init": "random", "stack": None, "draw_first": 0}
TRAIN: dict[str, Any] = {
    **{"optimizer": "Adam", "lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.0},
    **{"batch_size": 128, "unit": "step", "length": 1, "log_every": 1, "checkpoint_every": 1},
    **{"schedule": None, "clip_grad_norm": None, "stop": None, "compile": False},
    **{"weight_seeds": [1024], "batch_seeds": None},
}
MEASURE = {
    **{"qk_steps": [0, 2], "live_ratio": 0.1, "sequences": 70, "seed": 1},
    "lengths": {"first": 1, "last": 12, "step": 5},
}
LENGTHS = [1, 3, 7]


def stack(tied: bool = False, residual: bool = False, n_layers: int = 2) -> dict[str, Any]:
    return {"n_layers": n_layers, "tied": tied, "residual": residual}


def settings(**changes: Any) -> task.DataSettings:
    return task.DataSettings.parse(DATA | changes, "data")


def make_model(data: task.DataSettings, seed: int = 0, **changes: Any) -> model.InContextAttention:
    parsed = model.ModelSettings.parse(MODEL | changes, "model")
    return model.build(parsed, data, torch.Generator().manual_seed(seed))


def sequences(n: int = 9, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Sequences in float64."""
    made = task.sample(n, settings(**changes), torch.Generator().manual_seed(seed))
    return {name: value.double() for name, value in made.items()}


def plant(w: list[float], mu: list[float], d: int = 5) -> model.InContextAttention:
    """A layer whose heads have these w and mu, and nothing else in their circuits."""
    made = make_model(settings(d=d), n_heads=len(w)).double()
    layer = made.layers[0]
    with torch.no_grad():
        for name in "QKVO":
            layer.weight(name).zero_()
        entries = torch.eye(d + 1, dtype=torch.float64)
        for head, (w_h, mu_h) in enumerate(zip(w, mu, strict=True)):
            layer.weight("Q")[head] = entries * w_h * math.sqrt(d + 1)
            layer.weight("K")[head, :-1] = entries[:-1]
            layer.weight("V")[head, -1, -1] = 1.0
            layer.weight("O")[head, -1, 0] = mu_h
    return made


# The published start


def test_published_first_losses(tmp_path: Any) -> None:
    """One generator: a batch that is only shown, the weights, then the batches."""
    data, generator = settings(), torch.Generator().manual_seed(1024)
    parsed = model.ModelSettings.parse(MODEL | {"draw_first": 128}, "model")
    made = model.build(parsed, data, generator)
    train = task.TrainSettings.parse(TRAIN, "train")
    objective = training.Objective(
        task.batches({"z": torch.zeros(1)}, data, train, generator), task.loss, lambda _: {}
    )
    rows = training.train(made, objective, train, tmp_path, "key", {})
    assert [round(row["train_loss"], 4) for row in rows] == [4.7217, 5.2414]


def test_published_first_query() -> None:
    shown = task.sample(128, settings(), torch.Generator().manual_seed(1024))
    assert shown["z_q"][0].tolist() == pytest.approx(
        [-1.0028, 0.5808, -0.0651, 0.5011, 1.9787, 0], abs=5e-5
    )


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


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize(
    "shape",
    [None, stack(), stack(tied=True), stack(residual=True), stack(True, True, n_layers=3)],
    ids=str,
)
def test_forward_is_the_textbook_form_in_value_and_gradient(
    shape: dict[str, Any] | None, factored: bool
) -> None:
    made = make_model(settings(), n_heads=3, stack=shape).double()
    for parameter in made.parameters():  # larger than at the start, so that patterns are sharp
        parameter.data *= 2
    some = sequences(4, n_examples=6)
    expected = torch.stack(
        [textbook(made, *pair) for pair in zip(some["z"], some["z_q"], strict=True)]
    )
    predicted = made(some["z"], some["z_q"], factored=factored)
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
    assert not made.run_with_cache(some["z"], some["z_q"], factored=True)[1]


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


def test_planted_heads_come_back_and_are_their_kernel_estimator() -> None:
    planted_w, planted_mu = [0.3, -0.2], [1.5, -2.5]
    made, some = plant(planted_w, planted_mu), sequences()
    w, mu = weights_of(circuits(made)[0])
    assert w.tolist() == pytest.approx(planted_w, abs=1e-12)
    assert mu.tolist() == pytest.approx(planted_mu, abs=1e-12)
    with torch.no_grad():
        predicted = made(some["z"], some["z_q"])
    estimate = kernel(w, mu, some["z"], some["z_q"], [40])
    assert torch.allclose(predicted, estimate, atol=1e-10)
    # This does not hold for every model: one with other circuits differs.
    other = make_model(settings()).double()
    with torch.no_grad():
        predicted = other(some["z"], some["z_q"])
    estimate = kernel(*weights_of(circuits(other)[0]), some["z"], some["z_q"], [40])
    assert not torch.allclose(predicted, estimate, atol=1e-3)


def test_kernel_estimator_by_hand() -> None:
    z = torch.tensor([[[1.0, 2.0], [-1.0, 4.0]]]).double()
    z_q = torch.tensor([[3.0, 0.0]]).double()
    w, mu = torch.tensor([0.5]).double(), torch.tensor([7.0]).double()
    a, b = math.exp(0.5 * 3), math.exp(-0.5 * 3)
    estimate = kernel(w, mu, z, z_q, [1, 2])
    assert estimate.tolist()[0] == pytest.approx([7 * 2, 7 * (2 * a + 4 * b) / (a + b)])


@pytest.mark.parametrize("shape", [None, stack(residual=True)], ids=str)
def test_predictions_over_lengths_are_those_of_the_forward(shape: dict[str, Any] | None) -> None:
    made = make_model(settings(), stack=shape).double()
    some = sequences()
    predicted = transformer(made, some["z"], some["z_q"], LENGTHS)
    with torch.no_grad():
        expected = made(some["z"], some["z_q"], LENGTHS)
    assert torch.allclose(predicted, expected, atol=1e-10)


def test_small_weights_are_centred_gradient_descent() -> None:
    """Two heads (w, mu) and (-w, -mu) have the limit 2 w mu for w to 0, with an error of w^2."""
    some = sequences()
    w = 1e-4
    made = transformer(plant([w, -w], [1 / w, -1 / w]), some["z"], some["z_q"], [40])
    descent = gradient_descent(some["z"], some["z_q"], [40], centred=True)
    assert torch.allclose(made, 2 * descent, rtol=1e-4, atol=1e-4)
    plain = gradient_descent(some["z"], some["z_q"], [40])
    assert not torch.allclose(made, 2 * plain, rtol=1e-2, atol=1e-2)


def test_ridge() -> None:
    exact = sequences(delta=0.0)
    estimate = ridge(exact["z"], exact["z_q"], [3, 5, 40], 0.0)
    # Sequences are drawn in float32.
    assert torch.allclose(estimate[:, 1:], exact["y_q"].unsqueeze(1), atol=1e-3)
    # Three examples are too few for five entries.
    assert not torch.allclose(estimate[:, 0], exact["y_q"], atol=1e-1)
    some = sequences(delta=0.5)
    x, y = some["z"][0, :7, :-1].numpy(), some["z"][0, :7, -1].numpy()
    beta = np.linalg.solve(x.T @ x + 0.25 * 5 * np.eye(5), x.T @ y)
    by_hand = float(some["z_q"][0, :-1].numpy() @ beta)
    assert ridge(some["z"], some["z_q"], [7], 1.25)[0].item() == pytest.approx(by_hand)


def test_ridge_is_the_best_and_the_best_rate_is_best() -> None:
    some = sequences(4000, delta=0.5)
    target = some["y_q"]
    best = ridge(some["z"], some["z_q"], [40], 1.25)[:, 0]
    for factor in (0.9, 1.1):
        assert ((best - target) ** 2).mean() < ((factor * best - target) ** 2).mean()
    descent = gradient_descent(some["z"], some["z_q"], [40])[:, 0]
    rates = [rate * best_rate(5, 40, 0.5) for rate in (0.85, 1.0, 1.15)]
    errors = [((rate * descent - target) ** 2).mean().item() for rate in rates]
    assert errors[1] == min(errors)


def test_sums() -> None:
    layer = circuits(plant([0.3, -0.2, 0.1], [1.0, -3.0, 0.1]))[0]
    summed = sums(layer, settings(), live_ratio=0.1)
    assert summed["n_heads"] == 3
    assert summed["n_live"] == 2
    assert summed["same_sign"] == 1
    assert summed["mu_positive"] == pytest.approx(1.1)
    assert summed["mu_negative"] == pytest.approx(-3)
    assert summed["imbalance"] == pytest.approx(1.9 / 2.05)
    assert summed["w_mu"] == pytest.approx(0.3 + 0.6 + 0.01)
    assert summed["best_rate"] == pytest.approx(0.8889, abs=1e-4)
    opposed = circuits(plant([0.3, 0.2], [1.0, -3.0]))[0]
    assert sums(opposed, settings(), 0.1)["same_sign"] == 0.5


def test_rows_of_heads_show_what_else_is_in_the_circuits() -> None:
    made = plant([0.3], [1.0])
    with torch.no_grad():
        made.layers[0].weight("Q")[0, 1, 3] += 0.05 * math.sqrt(6)
        made.layers[0].weight("Q")[0, -1, 2] += 0.7 * math.sqrt(6)  # multiplied by the query's zero
        made.layers[0].weight("V")[0, 2, -1] = -0.02
    (row,) = head_rows(circuits(made), 12, live_ratio=0.1)
    assert row["step"] == 12
    assert row["w_variance"] == pytest.approx(0, abs=1e-15)
    assert row["qk_other"] == pytest.approx(0.05)
    assert row["qk_unread"] == pytest.approx(0.7)
    assert row["ov_other"] == pytest.approx(0.02)
    some = sequences()
    with torch.no_grad():
        before = made(some["z"], some["z_q"])
        made.layers[0].weight("Q")[0, -1] = 0
        assert torch.equal(made(some["z"], some["z_q"]), before)


def test_heads_are_live_beside_the_strongest() -> None:
    layers = circuits(plant([0.3, -0.2, 0.1], [1.0, -3.0, 0.1]))  # |w mu| 0.3, 0.6, 0.01
    assert [row["live"] for row in head_rows(layers, 0, live_ratio=0.1)] == [1, 1, 0]
    assert [row["live"] for row in head_rows(layers, 0, live_ratio=0.6)] == [0, 1, 0]


def test_moments_of_one_head_are_means_over_beta_and_noise() -> None:
    data = settings(d=2, n_examples=6, delta=0.4)
    made = task.sample(3, data, torch.Generator().manual_seed(0))
    x, x_q = made["z"][:, :, :-1].double(), made["z_q"][:, :-1].double()
    w = torch.tensor([0.2, 0.9]).double()
    moment, square = one_head_sums(w, x, x_q, data.noise_variance)
    draws = torch.Generator().manual_seed(1)
    beta = torch.randn(200_000, 3, 2, generator=draws, dtype=torch.float64)
    noise = torch.randn(200_000, 3, 6, generator=draws, dtype=torch.float64)
    y = torch.einsum("nbd,bld->nbl", beta, x) + data.noise_variance**0.5 * noise
    y_q = (beta * x_q).sum(2)
    for tried, exact_moment, exact_square in zip(w, moment, square, strict=True):
        weights = (tried * torch.einsum("bd,bld->bl", x_q, x)).softmax(1)
        f = (y * weights).sum(2)
        # Relative standard errors are about 0.3%.
        assert exact_moment.item() == pytest.approx((y_q * f).mean(0).sum().item(), rel=0.015)
        assert exact_square.item() == pytest.approx(f.pow(2).mean(0).sum().item(), rel=0.015)


def test_best_single_head() -> None:
    """Better than its neighbours on other sequences, and near 1 / sqrt(d) where d is large."""
    table = one_head_table(settings(), sequences=16_384, seed=1)
    smallest, largest = table.iloc[0], table.iloc[-1]
    some = sequences(20_000, seed=5)

    def error(w: float, mu: float) -> float:
        pair = torch.tensor([[w], [mu]]).double()
        predicted = kernel(pair[0], pair[1], some["z"], some["z_q"], [40])[:, 0]
        return float(((predicted - some["y_q"]) ** 2).mean())

    w, mu = float(smallest["w"]), float(smallest["mu"])
    at_best = error(w, mu)
    assert at_best == pytest.approx(smallest["mse"], rel=0.05)
    assert at_best < min(error(w * f, mu * g) for f, g in [(0.9, 1), (1.1, 1), (1, 0.9), (1, 1.1)])
    assert smallest["standard_error"] < 0.01
    assert abs(w - smallest["large_d_w"]) > 5 * smallest["standard_error"]
    assert largest["w"] == pytest.approx(largest["large_d_w"], rel=0.1)


def test_the_table_shows_the_published_start() -> None:
    made = make_model(settings(), 7, draw_first=128)
    train = task.TrainSettings.parse(TRAIN | {"weight_seeds": [1024, 5]}, "train")
    table = training_start({}, settings(), train, made)
    values = table.groupby("item")["value"].agg(list)
    assert [round(value, 4) for value in values["loss"]] == [4.7217, 5.2414]
    published = [-1.0028, 0.5808, -0.0651, 0.5011, 1.9787]
    assert [round(value, 4) for value in values["first_query"]] == published


def test_mean_and_error_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0]).double()
    mean, error = mean_and_error(values.sum(), (values**2).sum(), 4)
    assert float(mean) == pytest.approx(4)
    assert float(error) == pytest.approx(np.std(values.numpy(), ddof=1) / 2)


# Ablations


def test_pruning_planted_heads() -> None:
    """A head without output is worth nothing; the only other one is worth all."""
    made, data = plant([0.5, 0.3], [1.6, 0.0]), sequences(2000)
    parsed = ablations.AblateSettings.parse({"sequences": 96}, "ablate")
    table = ablations.ablate(made, data, settings(), parsed)
    none = table.loc[table["component"] == "none"].iloc[0]
    zero = table[table["method"] == "zero"].set_index("head")
    target = data["y_q"][:96]
    assert zero.loc[1, "loss"] == pytest.approx(none["loss"])
    assert zero.loc[0, "loss"] == pytest.approx(target.pow(2).mean().item())
    assert zero.loc[0, "accuracy"] == pytest.approx(0)
    assert none["accuracy"] > 0.5
    uniform = table[table["method"] == "uniform"].set_index("head")["loss"]
    with torch.no_grad():  # even attention: mu times the mean of y
        mean = 1.6 * data["z"][:96, :, -1].mean(1)
    assert uniform[0] == pytest.approx((mean - target).pow(2).mean().item())


# The tables of two runs, as the stages label them, and the figures from them


def measured(run: str, variant: str, **changes: Any) -> dict[str, pd.DataFrame]:
    """Tables of one model, labelled as if they were read from its run's files."""
    data_settings = settings(d=2, n_examples=6)
    data = task.generate(data_settings, torch.Generator().manual_seed(0))
    start, made = (make_model(data_settings, seed, **changes) for seed in (0, 1))
    states = [(0, start.state_dict()), (2, made.state_dict())]
    parsed = metrics.MeasureSettings.parse(MEASURE, "measure")
    tables, values = metrics.measure(made, states, data, data_settings, parsed)
    assert all(isinstance(value, int | float) for value in values.values())
    ablate = ablations.AblateSettings.parse({"sequences": 50}, "ablate")
    tables["ablations"] = ablations.ablate(made, data, data_settings, ablate)
    losses = [task.evaluate(network, data)["validation_loss"] for network in (start, made)]
    tables["training"] = pd.DataFrame({"step": [0, 2], "validation_loss": losses})
    return {name: t.assign(run=run, variant=variant, seed=7) for name, t in tables.items()}


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    runs = [
        measured("lr_h1", "", n_heads=1),
        measured("lr_h2", ""),
        measured("lr_stack", "untied", stack=stack()),
        measured("lr_stack", "residual", stack=stack(residual=True)),
    ]
    names = {name for run in runs for name in run}
    return {name: pd.concat([run[name] for run in runs if name in run]) for name in names}


def test_context_table(tables: dict[str, pd.DataFrame]) -> None:
    two_heads = tables["context"].query("run == 'lr_h2'")
    assert set(two_heads["length"]) == {1, 6, 11}
    assert set(two_heads["estimator"]) == set(ESTIMATORS)
    at_11 = two_heads[two_heads["length"] == 11].set_index("estimator")["mse"]
    assert at_11["ridge"] < at_11["gradient descent"] < at_11["zero"]
    assert at_11["transformer"] != at_11["untrained"]
    stacked = tables["context"].query("run == 'lr_stack'")
    assert set(stacked["estimator"]) == set(ESTIMATORS) - {"kernel"}


@pytest.mark.parametrize("run", ["lr_h1", "lr_h2"])
def test_losses_and_training_agree(tables: dict[str, pd.DataFrame], run: str) -> None:
    errors = tables["losses"].query(f"run == '{run}'").set_index("estimator")
    logged = tables["training"].query(f"run == '{run}'")["validation_loss"].tolist()
    assert errors.loc["untrained", "mse"] == pytest.approx(logged[0], rel=1e-5)
    assert errors.loc["transformer", "mse"] == pytest.approx(logged[1], rel=1e-5)
    assert errors.loc[DESCENT, "excess_mse"] == 0
    excess = errors["mse"].to_numpy() - errors["mse"].to_numpy()[errors.index == DESCENT]
    assert errors["excess_mse"].to_numpy() == pytest.approx(excess)


def test_every_figure_and_summary(tables: dict[str, pd.DataFrame]) -> None:
    published = {"heads": [[0.2, 3.0], [-0.1, -3.0]], "mu_sums": [-3.0, 3.0], "w_mu": 0.9}
    render = figures.RenderSettings.parse({"published": {"lr_h2": published}}, "render")
    summaries = figures.summarise(tables, render)
    heads = summaries["heads_compared"].query("run == 'lr_h2'")
    assert heads["w"].is_monotonic_increasing
    assert heads["published_w"].tolist() == [-0.1, 0.2]
    assert heads["published_mu"].tolist() == [-3.0, 3.0]
    models = summaries["models"].set_index(["run", "variant"])
    assert models.loc[("lr_h2", ""), "published_w_mu"] == 0.9
    assert models["published_w_mu"].notna().sum() == 1
    assert models["w_mu"].notna().sum() == 2  # one layer only
    half = models["high"] - models["mse"]
    assert np.allclose(half, 1.96 * models["standard_error"], rtol=1e-4)
    drawn = figures.draw(tables | summaries, render)
    expected = {"losses", "context_heads", "context_all", "head_comparison", "products"}
    expected |= {"final_losses", "head_pruning", "dynamics_heads", "dynamics_stack"}
    expected |= {"circuits_h1", "circuits_h2", "circuits_stack", "qk_evolution_h1"}
    assert set(drawn) == expected | {"qk_evolution_h2"}
    for name, figure in drawn.items():
        assert isinstance(figure, go.Figure)
        assert figure.layout.title.text, name
    assert "published" in drawn["head_comparison"].data[-1].name


def test_heatmaps_show_the_circuits(tables: dict[str, pd.DataFrame]) -> None:
    qk, ov = (named(tables[name]).query("run == 'lr_h2'") for name in ("qk", "ov"))
    figure = draw_circuits(qk, ov)
    made = make_model(settings(d=2), seed=1)
    (qk_matrices, ov_matrices), *_ = circuits(made)
    shown = [np.array(trace.z, dtype=float) for trace in figure.data]
    assert np.allclose(shown[0], qk_matrices[0])
    assert np.allclose(shown[1], ov_matrices[0].T)
    assert np.allclose(shown[2], qk_matrices[1])
