"""The layout `in_place` of the list-copy slice: numbers are copied where the separator stands."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toycircuits.core.config import InputError, find_run, read_params
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.list_copy import ablations, model, task
from toycircuits.experiments.list_copy.figures.cells import FREEZING
from toycircuits.experiments.list_copy.figures.draw import RenderSettings, draw, summarise
from toycircuits.experiments.list_copy.figures.grid import cell_text
from toycircuits.experiments.list_copy.metrics.activations import activations
from toycircuits.experiments.list_copy.metrics.attention import (
    leaked_attention,
    pattern_ranges,
    patterns_of,
)
from toycircuits.experiments.list_copy.metrics.copies import architecture_table
from toycircuits.experiments.list_copy.metrics.measure import (
    MeasureSettings,
    measure,
    training_start,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = {"layout": "in_place", "n_symbols": 5, "train_fraction": 0.6, "seed": 0}
MODEL = {"n_layers": 3, "n_heads": 1, "d_model": 8, "d_head": 8, "normalization": None}
MODEL |= {"use_bias": False, "freeze_W_V": True, "freeze_W_O": True}
TRAIN = {"optimizer": "AdamW", "lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.01}
TRAIN |= {"batch_size": 128, "unit": "step", "length": 1, "log_every": 1, "checkpoint_every": 1}
TRAIN |= {
    "schedule": None,
    "clip_grad_norm": None,
    "stop": None,
    "compile": False,
    "weight_seeds": [0],
}
TRAIN |= {"batch_seeds": [0], "drop_last": True, "draw": "same_order"}
GRID = {
    **{"solved": 0.999, "plateau": [0.42, 0.52], "jumped": [0.8, 0.97]},
    "batches": {"e_2l": "same order", "e_2l_new": "new orders"},
}
ABLATE = {"sample": [2, 1], "mean_lists": None}


def make_data(**changes: Any) -> tuple[task.DataSettings, dict[str, Tensor]]:
    settings = task.DataSettings.parse(DATA | changes, "data")
    return settings, task.generate(settings, torch.Generator().manual_seed(settings.seed))


def make_model(settings: task.DataSettings, seed: int = 0, **changes: Any) -> Transformer:
    shape = model.ModelSettings.parse(MODEL | changes, "model")
    return model.build(shape, settings, torch.Generator().manual_seed(seed))


# The start of a training, as the original study printed it


@pytest.fixture(scope="module")
def published() -> tuple[task.DataSettings, dict[str, Tensor]]:
    return make_data(n_symbols=100, train_fraction=0.8)


def test_first_training_lists_and_sizes(
    published: tuple[task.DataSettings, dict[str, Tensor]],
) -> None:
    _, data = published
    first = [(60, 44), (28, 90), (93, 99), (19, 17), (49, 19)]
    assert data["inputs"][:5].tolist() == [[a, b, 100, 100, 100] for a, b in first]
    assert data["targets"][:5].tolist() == [list(pair) for pair in first]
    assert (len(data["inputs"]), len(data["validation"])) == (8000, 2000)


def test_training_start_counts_the_lists_that_batches_leave_out(
    published: tuple[task.DataSettings, dict[str, Tensor]],
) -> None:
    settings, data = published
    unseen = {}
    for how in ("same_order", "new_orders"):
        train = task.TrainSettings.parse(TRAIN | {"draw": how}, "train")
        start = training_start(data, settings, train).groupby("item")["value"].agg(list)
        assert start["first_lists"] == [60, 44, 28, 90, 93, 99, 19, 17, 49, 19]
        assert (start["training_lists"], start["held_out_lists"]) == ([8000], [2000])
        assert start["batches_per_epoch"] == [62]
        unseen[how] = start["unseen_lists"]
    assert unseen["same_order"] == [8000, *[64] * 10]  # 8,000 less 62 batches of 128
    assert unseen["new_orders"][:2] == [8000, 64]
    assert 64 > unseen["new_orders"][2] >= unseen["new_orders"][10] == 0


def test_parameters_of_the_main_run(
    published: tuple[task.DataSettings, dict[str, Tensor]],
) -> None:
    row = architecture_table(make_model(published[0])).iloc[0]
    assert (row["parameters"], row["trainable"]) == (2621, 2040)


def test_params_say_what_was_published() -> None:
    params = read_params(ROOT / "params.yaml") | {"scale": "paper"}
    runs = [name for name in params["runs"] if name.startswith("list_copy_100")]
    ours = "2l_(frozen|reshuffle|large|widths)"
    runs = [name for name in runs if not re.search(ours, name)]
    shapes = set()
    for name in runs:
        run = find_run(params, name)
        data = run.section("data", task.DataSettings)
        train = run.section("train", task.TrainSettings)
        main = name in ("list_copy_100", "list_copy_100_reshuffle")
        assert (data.n_symbols, data.train_fraction, data.seed) == (100, 0.8, 0)
        assert (train.lr, train.weight_decay, train.batch_size) == (1e-3, 0.01, 128)
        assert train.stop is not None
        assert (train.stop.metric, train.stop.at_least) == ("accuracy", 0.999)
        assert train.length == (300_000 if main else 50_000)
        assert train.drop_last
        assert train.draw == ("new_orders" if name.endswith("reshuffle") else "same_order")
        for variant in run.variants:
            made = run.section("model", model.ModelSettings, variant)
            assert made.d_model == made.d_head == (8 if main else 128)
            if not main:
                shapes.add(made.model_dump_json())
                assert name not in params["released"]
    assert len(runs) == 10
    assert len(shapes) == 32


# Task


def test_lists_are_split_not_drawn() -> None:
    settings, data = make_data()
    rows = [task.list_row(pair, settings, "") for pair in data["inputs"][:, :2].tolist()]
    assert len(rows) == 15
    assert sorted(rows + data["validation"].tolist()) == list(range(25))
    name, lists = task.evaluation_lists(data)
    assert name == "validation lists"
    assert torch.equal(lists["inputs"], data["all_inputs"][data["validation"]])
    assert task.scored_positions(lists["targets"]) == task.OUTPUTS


def test_the_mask_as_drawn() -> None:
    settings, data = make_data()
    cache = activations(make_model(settings), data["all_inputs"])
    drawn = ["1....", "1....", "11...", "..1..", "..11."]
    for layer in range(3):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        assert ((pattern > 0).all(0)[0].tolist()) == [[c == "1" for c in row] for row in drawn]


class Writes:
    """Writes, in place, what `rule` makes of d1 and d2."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def __call__(
        self, tokens: Tensor, read: tuple[int, ...] | None = None, fixed: bool = False
    ) -> Tensor:
        logits = torch.full((len(tokens), 5, 6), -20.0)
        answer = torch.stack(self.rule(tokens[:, 0], tokens[:, 1]), 1)
        logits[:, 3:].scatter_(2, answer[:, :, None], 20.0)
        return logits if read is None else logits[:, list(read)]


@pytest.mark.parametrize(
    ("rule", "outputs", "lists"),
    [
        (lambda a, b: (a, b), lambda same: 1.0, lambda same: 1.0),
        (lambda a, b: (b, a), lambda same: same, lambda same: same),
        (lambda a, b: (a, a), lambda same: (1 + same) / 2, lambda same: same),
    ],
)
def test_accuracy_is_per_output_and_per_list(rule: Any, outputs: Any, lists: Any) -> None:
    _, data = make_data()
    numbers = data["all_inputs"][data["validation"], :2]
    same = (numbers[:, 0] == numbers[:, 1]).double().mean().item()
    assert 0 < same < 1
    values = task.evaluate(Writes(rule), data)
    assert values["accuracy"] == pytest.approx(outputs(same))
    assert values["accuracy_lists"] == pytest.approx(lists(same))
    assert (values["loss"] < 1e-6) == (lists(same) == 1)


def test_the_first_epoch_is_replayed_or_not() -> None:
    settings, data = make_data(n_symbols=30, train_fraction=0.8)  # 720 lists: 5 batches, 80 over
    for how in ("same_order", "new_orders"):
        train = task.TrainSettings.parse(TRAIN | {"draw": how}, "train")
        stream = task.batches(data, settings, train, torch.Generator().manual_seed(0))
        assert stream.per_epoch == 5
        epochs = [torch.cat([stream.next()["inputs"] for _ in range(5)]) for _ in range(3)]
        assert all(len(epoch.unique(dim=0)) == 640 for epoch in epochs)
        seen = len(torch.cat(epochs).unique(dim=0))
        assert seen == 640 if how == "same_order" else seen > 640
        assert torch.equal(epochs[0], epochs[2]) == (how == "same_order")


@pytest.mark.parametrize(
    "change",
    [{"train_fraction": None}, {"n_lists": 3}, {"n_sampled": 3}, {"train_fraction": 0.01}],
)
def test_data_that_does_not_fit_the_layout_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"the layout in_place needs|a part would be empty"):
        task.DataSettings.parse(DATA | change, "data")


# Metrics


def test_ranges_and_leaks_are_found_where_they_are() -> None:
    (mask,) = model.MASKS["in_place"]
    allowed = [[cell == "1" for cell in row] for row in mask]
    uniform = np.array(allowed) / np.sum(allowed, axis=1, keepdims=True)
    patterns = np.tile(uniform, (3, 10, 1, 1, 1))
    constant = pattern_ranges(patterns, [allowed] * 3)
    # The others have a single key, and nobody reads the last layer's SEP.
    read = {(0, "SEP"), (0, "o2"), (1, "SEP"), (1, "o2"), (2, "o2")}
    assert set(zip(constant["layer"], constant["query"], strict=True)) == read
    assert len(constant) == 5 * 2
    assert (constant["max"] == constant["min"]).all()
    assert leaked_attention(patterns) == 0
    patterns[1, 3, 0, 2, :2] = 0.9, 0.1
    patterns[0, 7, 0, 4, 1] = 0.25
    ranges = pattern_ranges(patterns, [allowed] * 3)
    moved = ranges[ranges["max"] - ranges["min"] > 1e-9]
    cells = moved[["layer", "query", "key", "max"]].to_numpy().tolist()
    assert cells == [[1, "SEP", "d1", 0.9], [1, "SEP", "d2", 0.5]]
    assert leaked_attention(patterns) == 0.25


def test_mean_patterns_are_those_of_the_validation_lists() -> None:
    settings, data = make_data()
    made = make_model(settings)
    ablate = ablations.AblateSettings.parse(ABLATE, "ablate")
    table = ablations.ablate(made, data, settings, ablate)
    assert len(table) == 2 * (1 + 3 * 4)
    assert list(table.filter(like="loss_at_")) == ["loss_at_o1", "loss_at_o2"]
    _, lists = task.evaluation_lists(data)
    validation = table[table["subset"] == "validation lists"].set_index(["method", "layer"])
    with torch.no_grad():
        values = task.evaluate(made, data)
    for name in ("loss", "accuracy", "accuracy_lists"):
        assert validation.loc[("none", "none"), name] == pytest.approx(values[name], abs=1e-6)
    means = {
        f"blocks.{layer}.attn.hook_pattern": pattern.mean(0)
        for layer, pattern in enumerate(patterns_of(made, lists["inputs"]))
    }

    def replaced(pattern: Tensor, hook: Any) -> Tensor:
        return torch.tensor(means[hook.name], dtype=pattern.dtype).expand_as(pattern)

    with torch.no_grad(), made.hooks(fwd_hooks=[(name, replaced) for name in means]):
        logits = made(lists["inputs"])[:, 3:].transpose(1, 2)
        by_hand = F.cross_entropy(logits, lists["targets"]).item()
    assert validation.loc[("mean", "all"), "loss"] == pytest.approx(by_hand, abs=1e-6)
    assert by_hand != pytest.approx(values["loss"], abs=1e-6)


# The tables of a small grid, as the stages leave them, and the figures from them


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Two runs without variants, two of four cells, and one more; two seeds each, untrained."""
    settings, data = make_data()
    to_measure = MeasureSettings.parse({"sample": [2, 1], "probe": None}, "measure")
    to_ablate = ablations.AblateSettings.parse(ABLATE, "ablate")
    frozen: dict[str, Any] = {"freeze_W_V": True, "freeze_W_O": True}
    cases: list[tuple[str, str, dict[str, Any]]] = [("e", "", frozen), ("e_new", "", frozen)]
    for n_layers in (2, 3):
        for value, output in FREEZING:
            shape = {"n_layers": n_layers, "freeze_W_V": value, "freeze_W_O": output}
            cases.append((f"e_{n_layers}l", f"{value}-{output}", shape))
    shapes = {"no_LN": frozen | {"n_layers": 2}, "LN": frozen | {"n_layers": 2}}
    shapes["LN"]["normalization"] = "LN"
    cases += [("e_2l_new", name, shape) for name, shape in shapes.items()]
    parts: dict[str, list[pd.DataFrame]] = {}
    for run, variant, shape in cases:
        for seed in (0, 1):
            made = make_model(settings, seed, **shape)
            made_tables, values = measure(made, [], data, settings, to_measure)
            assert values["leaked_attention"] == 0
            assert values["pattern_range_layer0"] > 0
            made_tables["ablations"] = ablations.ablate(made, data, settings, to_ablate)
            solved = {"accuracy": 1.0} if made.settings.n_layers == 3 and not seed else {}
            with torch.no_grad():
                log = [{"step": step, **task.evaluate(made, data)} for step in (0, 100)]
            log[-1] |= solved
            made_tables["training"] = pd.DataFrame(log).assign(train_loss=1.0)
            for name, table in made_tables.items():
                labels = {"run": run, "variant": variant, "seed": seed}
                parts.setdefault(name, []).append(table.assign(**labels))
    return {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}


def render_settings(**changes: Any) -> RenderSettings:
    known = {
        "published_accuracy": {"e_2l": [0.1, 0.2, 0.3, 0.4]},
        "published_steps": {"e_3l": [[100, 200], [100, 200], [100, 200], [3300, 3300]]},
    }
    grid = GRID | known | changes
    return RenderSettings.parse({"published_accuracy": None, "grid": grid}, "render")


def test_grid_table_puts_published_values_beside_their_cell(
    tables: dict[str, pd.DataFrame],
) -> None:
    summaries = summarise(tables, render_settings())
    grid = summaries["grid"]
    assert list(grid["run"]) == ["e_2l"] * 4 + ["e_3l"] * 4
    assert grid["published_accuracy"].tolist()[:4] == [0.1, 0.2, 0.3, 0.4]
    assert grid["published_accuracy"].isna().tolist()[4:] == [True] * 4
    assert grid["published_step_to"].tolist()[4:] == [200, 200, 200, 3300]
    assert grid["models"].eq(2).all()
    assert grid["solved"].tolist() == [0] * 4 + [1] * 4
    assert grid["rate"].tolist() == [0] * 4 + [0.5] * 4
    assert grid["step"].tolist()[4:] == [100] * 4
    assert ((grid["rate_low"] <= grid["rate"]) & (grid["rate"] <= grid["rate_high"])).all()
    assert list(summaries["batch_orders"]["run"]) == ["e", "e_new"]
    assert len(summaries["models"]) == 2 * (2 + 8 + 2)
    batches = summaries["batches"][["norm", "batches", "models"]].to_numpy().tolist()
    assert batches == [
        ["no LN", "same order", 2],
        ["no LN", "new orders", 2],
        ["LN", "new orders", 2],
    ]


def test_every_figure(tables: dict[str, pd.DataFrame]) -> None:
    for settings in (render_settings(), render_settings(published_accuracy={}, published_steps={})):
        drawings = draw(tables | summarise(tables, settings), settings)
        drawn = {name: drawing.make() for name, drawing in drawings.items()}
        for name, figure in drawn.items():
            assert isinstance(figure, go.Figure)
            assert figure.layout.title.text, name
    expected = ["loss", "accuracy", "batch_orders", "attention_sample", "attention_mean"]
    expected += ["attention_ranges", "ablations", "ablation_positions"]
    expected += ["grid_table", "grid_accuracy", "grid_curves", "grid_outputs", "batches"]
    assert sorted(drawn) == sorted(expected)
    assert len(drawn["loss"].data) == 2 * 2  # the first run's alone
    assert len(drawn["batch_orders"].data) == 2 * 2 * 2
    assert len(drawn["grid_curves"].data) == 8 * 2
    assert len(drawn["batches"].data) == 3 * 2
    heatmap = np.array(drawn["grid_accuracy"].data[0].z)
    assert heatmap.shape == (2, 4)
    assert (heatmap[1] > heatmap[0]).all()


def test_cells_in_words(tables: dict[str, pd.DataFrame]) -> None:
    settings = render_settings()
    assert settings.grid is not None
    cells = summarise(tables, settings)["grid"].assign(lowest=0.4, highest=0.9, solved=0)
    text = [cell_text(cell, settings.grid) for _, cell in cells.iterrows()]
    assert text[0] == "0.400 to 0.900<br><i>0.1000</i>"
    assert text[7] == "0.400 to 0.900<br><i>≥ 0.999, step 3300</i>"
    solved = cell_text(cells.iloc[4].copy().replace(0, 2), settings.grid)
    assert solved.startswith("≥ 0.999, step 100<br><i>≥ 0.999, step 100 to 200")
