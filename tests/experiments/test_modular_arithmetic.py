"""The analysis must find what was planted before it may look at a trained network."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from toycircuits.core.config import InputError
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic import ablations, model, task
from toycircuits.experiments.modular_arithmetic.figures import draw as figures
from toycircuits.experiments.modular_arithmetic.metrics import measure as metrics
from toycircuits.experiments.modular_arithmetic.metrics.activations import read_activations
from toycircuits.experiments.modular_arithmetic.metrics.fourier import (
    find_key_frequencies,
    fourier_basis,
    frequency_norms,
)
from toycircuits.experiments.modular_arithmetic.metrics.logits import cosine_logits, periodicity
from toycircuits.experiments.modular_arithmetic.metrics.neurons import neuron_frequencies
from toycircuits.experiments.modular_arithmetic.metrics.phases import find_phases

P = 31
PLANTED = [2, 7, 11]
PHASES = 16  # of the neurons of one frequency; the strongest term that aliases is then 1.5%
RULES = {"memorised_below": 1e-5, "grokked_below": 1e-4, "clean_ratio": 10.0}
SETTINGS = metrics.MeasureSettings(
    key_median_ratio=3.0, key_max_ratio=0.25, control_seed=0, example=(1, 2), **RULES
)


def data_settings(operation: str = "subtract", p: int = P) -> task.DataSettings:
    values = {"modulus": p, "operation": operation, "train_fraction": 0.5, "seed": 0}
    return task.DataSettings.parse(values, "data")


def make_data(settings: task.DataSettings) -> dict[str, Tensor]:
    return task.generate(settings, torch.Generator().manual_seed(settings.seed))


def make_model(settings: task.DataSettings, **shape: int) -> Transformer:
    values = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_head": 8, "d_mlp": 24} | shape
    values |= {"act_fn": "relu", "normalization": None, "use_bias": False}  # type: ignore[dict-item]
    generator = torch.Generator().manual_seed(0)
    return model.build(model.ModelSettings.parse(values, "model"), settings, generator)


def planted_network(settings: task.DataSettings, frequencies: list[int]) -> Transformer:
    """A network that computes sum_k |cos(w_k (a - s b) / 2)| cos(w_k (a + s b - c)), by hand.

    Head 0 copies the waves of a, head 1 those of b. A neuron of frequency k and phase f takes
    relu(cos(w_k a + f) + cos(w_k b - s f)) = relu(2 cos(w_k (a + s b)/2 + f) cos(w_k (a - s b)/2))
    whose second harmonic in f is cos(w_k (a + s b) + 2 f).
    """
    p, waves = settings.modulus, 2 * len(frequencies)
    network = make_model(
        settings, d_model=3 * waves + 4, d_head=waves + 1, d_mlp=len(frequencies) * PHASES
    )
    weights = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    of_token, of_a, of_b, place = 0, waves, 2 * waves, 3 * waves
    W_E, W_pos, W_U = weights["embed.W_E"], weights["pos_embed.W_pos"], weights["unembed.W_U"]
    attn, mlp = "blocks.0.attn.", "blocks.0.mlp."
    W_pos[torch.arange(3), place + torch.arange(3)] = 1.0
    for head, target in enumerate((of_a, of_b)):
        weights[attn + "W_Q"][head, place + 2, waves] = 1.0
        weights[attn + "W_K"][head, place + head, waves] = 1000.0
        eye = torch.eye(waves)
        weights[attn + "W_V"][head, of_token : of_token + waves, :waves] = eye
        weights[attn + "W_O"][head, :waves, target : target + waves] = eye
    x = torch.arange(p)
    phases = 2 * torch.pi * torch.arange(PHASES) / PHASES
    for index, k in enumerate(frequencies):
        angle = 2 * torch.pi * k * x / p
        cos, sin = 2 * index, 2 * index + 1
        W_E[:p, cos], W_E[:p, sin] = angle.cos(), angle.sin()
        neurons = slice(index * PHASES, (index + 1) * PHASES)
        W_in, W_out = weights[mlp + "W_in"], weights[mlp + "W_out"]
        W_in[of_a + cos, neurons], W_in[of_a + sin, neurons] = phases.cos(), -phases.sin()
        W_in[of_b + cos, neurons] = phases.cos()
        W_in[of_b + sin, neurons] = -settings.sign * phases.sin()
        W_out[neurons, cos], W_out[neurons, sin] = (2 * phases).cos(), -(2 * phases).sin()
        W_U[cos], W_U[sin] = 50 * angle.cos(), 50 * angle.sin()
    network.load_state_dict(weights)
    return network


@pytest.fixture(scope="module", params=["subtract", "add"])
def planted(request: pytest.FixtureRequest) -> tuple[metrics.Tables, dict[str, Any]]:
    settings = data_settings(request.param)
    network = planted_network(settings, PLANTED)
    states = [(0, network.state_dict())]
    return metrics.measure(network, states, make_data(settings), settings, SETTINGS)


def test_planted_frequencies_come_back(planted: tuple[metrics.Tables, dict[str, Any]]) -> None:
    tables, values = planted
    assert tables["key_frequencies"]["frequency"].tolist() == PLANTED
    assert values["test_accuracy"] == 1.0
    logits = tables["logit_frequencies"]
    assert sorted(logits.nlargest(3, "cosine")["frequency"]) == PLANTED
    assert set(tables["neurons"]["frequency"]) == set(PLANTED)
    assert tables["neurons"]["share"].min() > 0.9 > 0.2 > tables["neurons"]["control"].max()
    assert tables["neurons"]["key"].all()
    assert values["n_key"] == len(PLANTED)
    assert values["smallest_key_cosine"] == logits["cosine"].nlargest(3).min()
    assert values["uniform_loss"] == pytest.approx(math.log(P))


def test_restricted_loss_follows_the_task_and_not_the_controls(
    planted: tuple[metrics.Tables, dict[str, Any]],
) -> None:
    _, values = planted
    assert values["restricted_loss"] < 1e-3
    # Along the other sign nothing of the answer is left: the loss is ln p. The same holds along
    # random frequencies, but the neurons' higher harmonics may mislead a little.
    assert values["restricted_loss_other_sign"] == pytest.approx(math.log(P), abs=0.05)
    assert values["restricted_loss_random"] > math.log(P) - 0.05
    assert values["excluded_loss"] > 1.0
    assert values["excluded_loss_random"] == pytest.approx(values["train_loss"], abs=1e-3)


def test_other_sign_is_not_in_the_logits(
    planted: tuple[metrics.Tables, dict[str, Any]],
) -> None:
    logits = planted[0]["logit_frequencies"]
    assert logits["cosine"].pow(2).sum() > 0.5
    assert logits["other_sign"].abs().max() < 0.02
    assert logits["noise"].abs().max() < 0.05


def test_noise_has_no_key_frequencies() -> None:
    basis = fourier_basis(P)[0]
    for seed in range(20):
        noise = torch.randn(P, 32, generator=torch.Generator().manual_seed(seed))
        assert find_key_frequencies(frequency_norms(noise, basis), 3.0, 0.25) == []


@pytest.mark.parametrize("operation", ["subtract", "add"])
def test_periodicity_equals_the_projection_on_a_whole_cube(operation: str) -> None:
    settings = data_settings(operation, 7)
    labels = make_data(settings)["labels"]
    logits = torch.randn(49, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coefficients, cosines = periodicity(logits, labels)
    difference = (labels.unsqueeze(1) - torch.arange(7)).double()
    for k in (1, 2, 3):
        cube = (2 * torch.pi * k * difference / 7).cos()
        expected = (logits * cube).sum() / cube.norm()
        assert coefficients[k - 1].item() == pytest.approx(expected.item(), abs=1e-12)
        assert cosines[k - 1].item() == pytest.approx((expected / logits.norm()).item(), abs=1e-12)
    # Logits made of some of the coefficients have these coefficients and no others.
    chosen = {k: coefficients[k - 1].item() for k in (1, 3)}
    again = periodicity(cosine_logits(chosen, labels, 7), labels)[0]
    assert again.tolist() == pytest.approx([chosen[1], 0.0, chosen[3]], abs=1e-12)


def test_neuron_frequencies_take_all_terms_of_a_frequency() -> None:
    a, b = torch.cartesian_prod(torch.arange(11), torch.arange(11)).double().unbind(1)
    w = 2 * torch.pi / 11
    neurons = torch.stack(
        [
            5 + (2 * w * a).cos(),  # a constant times a row
            (3 * w * a).sin() * (3 * w * b).cos(),  # a product of one frequency
            (w * (a - b)).cos(),
            (w * a).cos() + (4 * w * b).cos(),  # two frequencies, half each
            torch.full_like(a, 3.0),  # no variance
        ],
        1,
    )
    shares = neuron_frequencies(neurons, 11)
    expected = [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0.5, 0, 0, 0.5, 0], [0] * 5]
    assert torch.allclose(shares, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_phases_of_a_drawn_curve() -> None:
    table = pd.DataFrame(
        {
            "step": [0, 100, 200, 300, 400, 500],
            "train_loss": [4.0, 1e-2, 1e-6, 1e-7, 1e-7, 1e-7],
            "test_loss": [4.0, 20.0, 9.0, 2.0, 5e-5, 5e-7],
        }
    )
    phases = find_phases(table, uniform_loss=4.1, **RULES)
    assert phases == {
        "memorised_step": 200,
        "memorisation_end": 100,
        "circuit_formation_end": 300,
        "grokked_step": 400,
        "cleanup_end": 500,
    }
    never = find_phases(table.iloc[:3], uniform_loss=4.1, **RULES)
    assert np.isnan([never[name] for name in ("grokked_step", "circuit_formation_end")]).all()
    assert np.isnan(never["cleanup_end"])


def test_activations_rebuild_the_logits() -> None:
    settings = data_settings(p=7)
    network, data = make_model(settings), make_data(settings)
    acts = read_activations(network, data["tokens"])
    assert torch.allclose(acts.logits, network(data["tokens"])[:, -1], atol=1e-6)
    assert acts.mlp.shape == (49, 24)


def test_ablating_the_copying_heads_of_the_planted_network_destroys_it() -> None:
    settings = data_settings()
    network, data = planted_network(settings, PLANTED), make_data(settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    table = ablations.ablate(network, data, settings, ablations.AblateSettings())
    test = table[table["pairs"] == "test"].set_index(["component", "head", "method"])["accuracy"]
    assert test["none", "", "none"] == 1.0
    # Each head always looks at the same position: its pattern's mean is the pattern.
    assert test["pattern", 0, "mean"] == 1.0
    assert test["pattern", 0, "uniform"] < 0.5
    assert test["z", 1, "zero"] < 0.2
    assert test["mlp_out", "all", "zero"] < 0.2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_every_figure_is_drawn_also_of_a_network_that_found_nothing() -> None:
    settings = data_settings(p=7)
    network, data = make_model(settings), make_data(settings)
    states = [(0, network.state_dict()), (10, network.state_dict())]
    strict = SETTINGS.model_copy(update={"key_median_ratio": 1e6})
    tables, _ = metrics.measure(network, states, data, settings, strict)
    assert tables["key_frequencies"].empty
    tables["ablations"] = ablations.ablate(network, data, settings, ablations.AblateSettings())
    tables["training"] = tables["progress"][["step", "train_loss", "test_loss"]]
    labelled = {name: t.assign(run="r", variant="", seed=0) for name, t in tables.items()}
    drawings = figures.draw(labelled, figures.RenderSettings(published_phases=(1, 2, 3)))
    drawn = {name: drawing.make() for name, drawing in drawings.items()}
    assert len(drawn) == 21
    for name, figure in drawn.items():
        assert figure.layout.title.text, name
        assert len(figure.data), name


def test_same_inputs_give_the_same_tables() -> None:
    settings = data_settings(p=7)
    network, data = make_model(settings), make_data(settings)
    states = [(0, network.state_dict())]
    first, again = (metrics.measure(network, states, data, settings, SETTINGS)[0] for _ in range(2))
    for name, table in first.items():
        assert table.to_csv() == again[name].to_csv(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modulus": 8}, "modulus: found 8; allowed are odd numbers"),
        (
            {"modulus": 3, "train_fraction": 0.01},
            "train_fraction: found 0.01; allowed are fractions that leave pairs to train on",
        ),
    ],
)
def test_impossible_tasks_are_refused(change: dict[str, object], message: str) -> None:
    values = {"modulus": 7, "operation": "add", "train_fraction": 0.5, "seed": 0} | change
    with pytest.raises(InputError) as error:
        task.DataSettings.parse(values, "data")
    assert message in str(error.value)
