"""The list-copy slice: task, model, metrics, ablations and figures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor

from toycircuits.core.checkpoints import write_tensors
from toycircuits.core.config import InputError, Settings
from toycircuits.core.interventions import ablated
from toycircuits.core.optimizer import Optimizer
from toycircuits.core.training import Objective
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.list_copy import ablations, model, task
from toycircuits.experiments.list_copy.figures import curves, patterns
from toycircuits.experiments.list_copy.figures.draw import RenderSettings, draw
from toycircuits.experiments.list_copy.metrics.activations import activations
from toycircuits.experiments.list_copy.metrics.attention import pattern_table
from toycircuits.experiments.list_copy.metrics.measure import (
    MeasureSettings,
    measure,
    training_start,
)
from toycircuits.experiments.list_copy.metrics.separator import ProbeSettings, pca_tables, probe

DATA = {"layout": "next_token", "n_symbols": 4, "n_lists": 60, "n_sampled": 8, "seed": 0}
MODEL = {"n_layers": 2, "n_heads": 1, "d_model": 8, "d_head": 8, "normalization": "LN"}
MODEL |= {"use_bias": True, "freeze_W_V": True, "freeze_W_O": False}
TRAIN = {"optimizer": "AdamW", "lr": 0.01, "betas": [0.9, 0.999], "weight_decay": 0.01}
TRAIN |= {"batch_size": 25, "unit": "epoch", "length": 1, "log_every": 1, "checkpoint_every": 1}
TRAIN |= {
    "schedule": None,
    "clip_grad_norm": None,
    "stop": None,
    "compile": False,
    "weight_seeds": [0],
}
TRAIN |= {"batch_seeds": [0], "drop_last": False, "draw": "new_orders"}
PROBE = {"folds": 2, "C": 1.0, "control_seed": 0}


@pytest.fixture
def settings() -> task.DataSettings:
    return task.DataSettings.parse(DATA, "data")


@pytest.fixture
def data(settings: task.DataSettings) -> dict[str, Tensor]:
    return task.generate(settings, torch.Generator().manual_seed(0))


def make_model(settings: task.DataSettings, seed: int = 0, **changes: Any) -> Transformer:
    shape = model.ModelSettings.parse(MODEL | changes, "model")
    return model.build(shape, settings, torch.Generator().manual_seed(seed))


def randomise_biases(made: Transformer) -> Transformer:
    """Biases start at zero, and with them much that a test should see."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.rpartition(".")[2].startswith("b_"):
                parameter.normal_(generator=generator)
    return made


# Task


def test_layout_and_targets(data: dict[str, Tensor], settings: task.DataSettings) -> None:
    inputs, targets = data["inputs"], data["targets"]
    assert inputs.shape == (60, 5)
    assert (inputs[:, 2] == 4).all()
    assert inputs[:, :2].max() == 3
    assert torch.equal(inputs[:, :2], inputs[:, 3:])
    assert torch.equal(targets, inputs[:, 1:])
    assert task.scored_positions(targets) == (0, 1, 2, 3)
    assert len(data["all_inputs"].unique(dim=0)) == 16
    assert data["all_inputs"][task.list_row((2, 1), settings, "sample")].tolist() == [2, 1, 4, 2, 1]


def test_same_seed_same_bytes(settings: task.DataSettings, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tensors = task.generate(settings, torch.Generator().manual_seed(seed))
        write_tensors(tmp_path / name, tensors, {})
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_loss_is_that_of_the_four_next_tokens(
    data: dict[str, Tensor], settings: task.DataSettings
) -> None:
    made = make_model(settings)
    batch = {name: data[name] for name in ("inputs", "targets")}
    log_probs = made(data["inputs"]).log_softmax(-1)
    rows = torch.arange(60)
    by_hand = [-log_probs[rows, pos, data["inputs"][:, pos + 1]].mean() for pos in range(4)]
    torch.testing.assert_close(task.loss(made, batch), torch.stack(by_hand).mean())


class Oracle:
    """Knows the rule, and that d2 is anything: reaches the floor and copies everything."""

    def __call__(
        self, tokens: Tensor, read: tuple[int, ...] | None = None, fixed: bool = False
    ) -> Tensor:
        certain = torch.zeros(len(tokens), 5, 5)
        certain[:, 1, 4] = certain[:, 4, 4] = 1
        certain[torch.arange(len(tokens)), 2, tokens[:, 0]] = 1
        certain[torch.arange(len(tokens)), 3, tokens[:, 1]] = 1
        certain[:, 0, :4] = 1 / 4
        logits = certain.log().clamp_min(-1e4)
        return logits if read is None else logits[:, list(read)]


def test_oracle_reaches_the_floor(data: dict[str, Tensor]) -> None:
    values = task.evaluate(Oracle(), data)
    assert values["accuracy"] == values["accuracy_sampled"] == 1
    assert values["loss"] == pytest.approx(values["loss_floor"]) == math.log(4) / 4


def test_generation_is_stepwise_argmax(
    data: dict[str, Tensor], settings: task.DataSettings
) -> None:
    made = make_model(settings)
    inputs = data["all_inputs"]
    with torch.no_grad():
        tokens = inputs[:, :3]
        for _ in range(2):
            last = tokens.shape[1] - 1
            tokens = torch.cat([tokens, made(tokens, read=(last,))[:, 0].argmax(-1)[:, None]], 1)
        written = task.complete(made, inputs)
    assert torch.equal(written, tokens[:, 3:])
    assert len(written.unique(dim=0)) > 1  # not the same answer to everything
    scrambled = inputs.clone()
    scrambled[:, 3:] = inputs.flip(0)[:, 3:]
    assert torch.equal(task.complete(made, scrambled), written)  # the answer is not looked at


def test_last_partial_batch_is_kept(data: dict[str, Tensor], settings: task.DataSettings) -> None:
    for drop_last, sizes in ((False, [25, 25, 10]), (True, [25, 25])):
        train = task.TrainSettings.parse(TRAIN | {"drop_last": drop_last}, "train")
        stream = task.batches(data, settings, train, torch.Generator().manual_seed(0))
        assert [len(stream.next()["inputs"]) for _ in sizes] == sizes
        assert stream.per_epoch == len(sizes)
        start = training_start(data, settings, train).groupby("item")["value"].agg(list)
        assert start["batches_per_epoch"] == [len(sizes)]
        assert start["unseen_lists"][:2] == [60, 0 if not drop_last else 10]
        assert start["held_out_lists"] == [0]


@pytest.mark.parametrize(
    ("cls", "values", "change"),
    [
        (task.DataSettings, DATA, {"n_symbols": 1}),
        (task.DataSettings, DATA, {"n_symbols": 4.0}),
        (task.DataSettings, DATA, {"layout": "sideways"}),
        (task.DataSettings, DATA, {"n_list": 3}),
        (task.DataSettings, DATA, {"train_fraction": 0.5}),
        (task.DataSettings, DATA, {"n_lists": None}),
        (task.TrainSettings, TRAIN, {"batch_size": None}),
        (model.ModelSettings, MODEL, {"d_head": 4}),
        (model.ModelSettings, MODEL, {"n_heads": 0}),
        (MeasureSettings, {"sample": [1, 2], "probe": PROBE}, {"sample": [1]}),
        (ProbeSettings, PROBE, {"folds": 1}),
        (ablations.AblateSettings, {"sample": [1, 2], "mean_lists": 5}, {"mean_lists": 0}),
        (RenderSettings, {"published_accuracy": None}, {"published_accuracy": []}),
    ],
)
def test_bad_settings_are_named_in_one_line(
    cls: type[Settings], values: dict[str, Any], change: dict[str, Any]
) -> None:
    cls.parse(values, "section")
    with pytest.raises(InputError, match=next(iter(change))) as caught:
        cls.parse(values | change, "section")
    assert "\n" not in str(caught.value)


# Model


def test_mask_and_frozen_values(settings: task.DataSettings) -> None:
    made = make_model(settings)
    assert made.settings.allowed[0] == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [False, False, True, True, False],
        [False, False, True, True, True],
    ]
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert {"blocks.0.attn.W_O", "blocks.0.attn.b_V", "unembed.b_U"} <= trained
    assert "blocks.1.attn.W_V" not in trained
    assert torch.equal(made.get_parameter("blocks.1.attn.W_V")[0], torch.eye(8))


def test_outputs_learn_of_the_list_through_the_separator_only(
    data: dict[str, Tensor], settings: task.DataSettings
) -> None:
    made = make_model(settings)
    logits = made(data["all_inputs"])
    changed = data["all_inputs"].clone()
    changed[:, :2] = (changed[:, :2] + 1) % 4
    assert not torch.allclose(made(changed)[:, 4], logits[:, 4])
    nothing = torch.zeros_like(logits[:1, 0, :1])
    for layer in range(2):  # now SEP is cut off, too
        made.get_submodule(f"blocks.{layer}.attn.hook_v").add_hook(lambda v, hook: v * nothing)
    assert torch.allclose(made(changed)[:, 4], made(data["all_inputs"])[:, 4])


def test_a_short_training_copies(settings: task.DataSettings, data: dict[str, Tensor]) -> None:
    train = task.TrainSettings.parse(TRAIN | {"batch_size": 60}, "train")
    made = make_model(settings, d_model=16, d_head=16)
    order = torch.Generator().manual_seed(0)
    goal = Objective(task.batches(data, settings, train, order), task.loss, lambda m: {})
    optimizer = Optimizer(made, train)
    before = task.evaluate(made, data)
    for _ in range(150):
        goal.loss(made, goal.stream.next()).backward()
        optimizer.step()
    with torch.no_grad():
        after = task.evaluate(made, data)
    assert before["accuracy"] < 0.5 < 0.9 < after["accuracy"]
    assert after["loss_floor"] < after["loss"] < before["loss"]


# Ablations


@pytest.fixture
def ablate_settings() -> ablations.AblateSettings:
    return ablations.AblateSettings.parse({"sample": [2, 1], "mean_lists": 50}, "ablate")


def test_ablation_table(
    data: dict[str, Tensor],
    settings: task.DataSettings,
    ablate_settings: ablations.AblateSettings,
) -> None:
    made = randomise_biases(make_model(settings))
    before = made(data["all_inputs"])
    table = ablations.ablate(made, data, settings, ablate_settings)
    assert torch.equal(made(data["all_inputs"]), before)
    assert not any(point.fwd_hooks for point in made.hook_dict.values())
    assert list(table.columns[:7]) == [
        *("component", "layer", "head", "method", "subset", "loss", "accuracy")
    ]
    assert len(table) == 2 * (1 + 3 * 3)
    none = table[table["component"] == "none"].set_index("subset")
    with torch.no_grad():
        values = task.evaluate(made, data)
    assert none.loc["all lists", "loss"] == pytest.approx(values["loss"], abs=1e-6)
    assert none.loc["all lists", "accuracy"] == values["accuracy"]
    row = task.list_row((2, 1), settings, "sample")
    sample = {name: data[f"all_{name}"][row : row + 1] for name in ("inputs", "targets")}
    assert none.loc["(2, 1)", "loss"] == pytest.approx(task.loss(made, sample).item(), abs=1e-6)
    parts = table.filter(like="loss_at_")
    assert list(parts) == ["loss_at_d1", "loss_at_d2", "loss_at_SEP", "loss_at_o1"]
    assert np.allclose(parts.mean(axis=1), table["loss"])
    zero = table[(table["method"] == "zero") & (table["subset"] == "all lists")]
    assert (abs(zero["loss"] - values["loss"]) > 1e-3).all()  # an ablation is felt


def test_constant_patterns_are_their_mean(
    data: dict[str, Tensor],
    settings: task.DataSettings,
    ablate_settings: ablations.AblateSettings,
) -> None:
    made = randomise_biases(make_model(settings))
    with torch.no_grad():
        for layer in range(2):  # no query, so that all scores are 0
            made.get_parameter(f"blocks.{layer}.attn.W_Q").zero_()
            made.get_parameter(f"blocks.{layer}.attn.b_Q").zero_()
    table = ablations.ablate(made, data, settings, ablate_settings)
    for subset, rows in table.groupby("subset"):
        patterns = rows[rows["component"] == "pattern"]
        none = rows.loc[rows["component"] == "none", "loss"].item()
        assert len(patterns) == 6, subset
        assert np.allclose(patterns["loss"], none, atol=1e-6)
        assert not np.allclose(rows.loc[rows["component"] == "value", "loss"], none, atol=1e-3)


def test_uniform_pattern_by_hand(data: dict[str, Tensor], settings: task.DataSettings) -> None:
    made = randomise_biases(make_model(settings))
    plan = ablations.plan(2, 1)
    uniform = next(step for columns, step in plan if columns["method"] == "uniform")
    with torch.no_grad(), ablated(made, uniform):
        acts = activations(made, data["all_inputs"])
    allowed = torch.tensor(made.settings.allowed[0]).float()
    expected = allowed / allowed.sum(1, keepdim=True)
    assert torch.allclose(acts["blocks.0.attn.hook_pattern"][:, 0], expected.expand(16, -1, -1))
    assert not torch.allclose(acts["blocks.1.attn.hook_pattern"][0, 0], expected)


# Metrics


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Vectors that hold d1 and nothing of d2, with noise; and their lists of ten numbers."""
    lists = task.all_lists(10).numpy()
    noise = np.random.default_rng(0).normal(size=(100, 12))
    return np.eye(12)[lists[:, 0]] + 0.01 * noise, lists


def test_probe_finds_what_was_planted_and_only_that(
    planted: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, lists = planted
    settings = ProbeSettings.parse(PROBE | {"folds": 10}, "probe")
    assert probe(vectors, lists, 0, settings) == 1
    assert probe(vectors, lists, 1, settings) < 0.3
    assert probe(vectors, lists, 0, settings, shuffled=True) < 0.3


def test_pca_of_a_planted_plane() -> None:
    lists = task.all_lists(4).numpy()
    frame = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 2)))[0].T
    vectors = lists @ (frame * np.array([[3.0], [1.0]]))
    tables = pca_tables({"trained": vectors, "untrained": np.eye(16)[:, :8]}, lists)
    share = tables["pca_variance"]["trained"].to_numpy()
    assert share[:3] == pytest.approx([0.9, 0.1, 0])
    points = tables["pca"]
    assert abs(np.corrcoef(points["pc1"], points["d1"])[0, 1]) == pytest.approx(1)
    assert abs(np.corrcoef(points["pc2"], points["d2"])[0, 1]) == pytest.approx(1)
    assert (points["sum"] == points["d1"] + points["d2"]).all()


def test_patterns_by_cell(data: dict[str, Tensor], settings: task.DataSettings) -> None:
    made = randomise_biases(make_model(settings))
    inputs = data["all_inputs"]
    table = pattern_table(made, {"(2, 1)": inputs[9:10], "all lists": inputs})
    assert len(table) == 2 * 2 * 25
    for _, pattern in table.groupby(["subset", "layer"]):
        cells = pattern["weight"].to_numpy().reshape(5, 5)
        assert (~np.isnan(cells)).tolist() == made.settings.allowed[0]
        assert np.nansum(cells, axis=1) == pytest.approx(np.ones(5))
    cache = activations(made, data["all_inputs"])
    weight = cache["blocks.1.attn.hook_pattern"][9, 0, 2, 1].item()
    cell = table.query("subset == '(2, 1)' and layer == 1 and query == 'SEP' and key == 'd2'")
    assert cell["weight"].item() == pytest.approx(weight)


# The tables of one model, as the stages label them, and the figures from them


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    settings = task.DataSettings.parse(DATA, "data")
    data = task.generate(settings, torch.Generator().manual_seed(0))
    to_measure = MeasureSettings.parse({"sample": [2, 1], "probe": PROBE}, "measure")
    to_ablate = ablations.AblateSettings.parse({"sample": [2, 1], "mean_lists": 50}, "ablate")
    made, start = make_model(settings), make_model(settings, seed=1)
    final = {name: value.clone() for name, value in made.state_dict().items()}
    states = [(0, start.state_dict()), (7, final)]
    made_tables, values = measure(made, states, data, settings, to_measure)
    assert all(torch.equal(final[name], now) for name, now in made.state_dict().items())
    assert all(isinstance(value, float) for value in values.values())
    with torch.no_grad():
        logs = [task.evaluate(network, data) for network in (start, made)]
    log = [{"step": 7 * i, "train_loss": row["loss"], **row} for i, row in enumerate(logs)]
    made_tables["training"] = pd.DataFrame(log)
    made_tables["ablations"] = ablations.ablate(made, data, settings, to_ablate)
    return {
        name: pd.concat([label(table, seed) for seed in (0, 1)])
        for name, table in made_tables.items()
    }


def label(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Pretend that `table` is that of one seed of a run without variants."""
    return table.assign(run="r", variant="", seed=seed)


def test_measure_compares_with_the_first_checkpoint(tables: dict[str, pd.DataFrame]) -> None:
    probes = tables["probes"]
    assert set(probes["case"]) == {"trained", "untrained", "shuffled labels"}
    assert len(probes) == 2 * (3 * 2 * 2)
    variance = tables["pca_variance"]
    assert not np.allclose(variance["trained"], variance["untrained"])


def test_every_figure(tables: dict[str, pd.DataFrame]) -> None:
    settings = RenderSettings.parse({"published_accuracy": [0.1, 0.9]}, "render")
    drawn = {name: drawing.make() for name, drawing in draw(tables, settings).items()}
    expected = ["loss", "accuracy", "attention_sample", "attention_mean", "ablations", "probes"]
    expected += ["ablation_positions", "explained_variance", "pca_sum", "pca_d1", "pca_d2"]
    assert sorted(drawn) == sorted(expected)
    for name, figure in drawn.items():
        assert isinstance(figure, go.Figure)
        assert figure.layout.title.text, name
    assert len(drawn["pca_sum"].data[0].x) == 16  # one model's, though there are two
    assert len(drawn["loss"].data) == 4  # two curves of two models
    published = drawn["accuracy"].data[-1]
    assert published.name == "published"
    assert list(published.x) == [3.5, 7]
    assert len(curves.accuracy(tables["training"], published=None).data) == 4
    assert drawn["loss"].layout.shapes[0].y0 == pytest.approx(math.log(4) / 4)


def test_attention_picture_shows_the_numbers(tables: dict[str, pd.DataFrame]) -> None:
    figure = patterns.attention(tables["patterns"], "all lists")
    first = tables["patterns"].query("seed == 0 and subset == 'all lists' and layer == 1")
    shown = np.array(figure.data[1].z, dtype=float)
    assert np.array_equal(shown.flatten(), first["weight"].to_numpy(), equal_nan=True)
    assert [note.text for note in figure.layout.annotations] == [
        *("layer 0, head 0", "layer 1, head 0")
    ]
