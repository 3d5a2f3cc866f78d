"""In-context linear regression: planted heads, estimators, ablations, tables and figures."""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from made_regression import (
    LENGTHS,
    MEASURE,
    TRAIN,
    make_model,
    plant,
    sequences,
    settings,
    stack,
)

from toycircuits.experiments.linear_regression import ablations, task
from toycircuits.experiments.linear_regression.figures import draw as figures
from toycircuits.experiments.linear_regression.figures.circuits import circuits as draw_circuits
from toycircuits.experiments.linear_regression.figures.context import ESTIMATORS
from toycircuits.experiments.linear_regression.figures.labels import DESCENT, named
from toycircuits.experiments.linear_regression.metrics import measure as metrics
from toycircuits.experiments.linear_regression.metrics import stack as stack_metrics
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
    made = make_model(settings(), 7)
    skip = 128 * (40 * 5 + 5 + 5 + 40)  # the batch that the study only prints
    train = task.TrainSettings.parse(TRAIN | {"weight_seeds": [1024, 5], "skip": skip}, "train")
    table = training_start({}, settings(), train, made)
    values = table.groupby("item")["value"].agg(list)
    assert [round(value, 4) for value in values["loss"]] == [4.7217, 5.2414]
    published = [-1.0028, 0.5808, -0.0651, 0.5011, 1.9787]
    assert [round(value, 4) for value in values["first_query"]] == published


@pytest.mark.parametrize("lengths", [[1], [1, 3, 40, 41, 70], list(range(1, 71))], ids=len)
@pytest.mark.parametrize(
    "shape", [stack(), stack(tied=True, n_layers=3), stack(residual=True)], ids=str
)
def test_predictions_of_a_stack_are_those_of_its_model(
    shape: dict[str, Any], lengths: list[int]
) -> None:
    """Over more examples than a block has rows, and more sequences than are computed at once."""
    n = stack_metrics.SEQUENCES + 3
    made, some = make_model(settings(), 7, stack=shape).double(), sequences(n, n_examples=70)
    assert stack_metrics.ROWS < 70
    for parameter in made.parameters():  # larger than at the start, so that patterns are sharp
        parameter.data *= 2
    with torch.no_grad():
        expected = made(some["z"], some["z_q"], lengths)
    predicted = transformer(made, some["z"], some["z_q"], lengths)
    # float64, in another order of operations.
    assert torch.allclose(predicted, expected, rtol=0, atol=1e-12)
    if lengths != [1]:  # of a single example, two layers see nothing without a residual stream
        assert expected[:, -1].std() > 0.01


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
    drawings = figures.draw(tables | summaries, render)
    drawn = {name: drawing.make() for name, drawing in drawings.items()}
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
