"""The layout `masked` of the list-copy slice, its model, and the ways to draw batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from toycircuits.core.config import InputError, find_run, read_params
from toycircuits.core.slices import load_model
from toycircuits.core.transformer import Transformer, TransformerSettings
from toycircuits.experiments.list_copy import ablations, model, task
from toycircuits.experiments.list_copy.figures.cells import grid_cells
from toycircuits.experiments.list_copy.figures.draw import RenderSettings, draw, summarise
from toycircuits.experiments.list_copy.metrics.activations import activations
from toycircuits.experiments.list_copy.metrics.attention import pattern_ranges, pattern_table
from toycircuits.experiments.list_copy.metrics.copies import architecture_table
from toycircuits.experiments.list_copy.metrics.measure import (
    MeasureSettings,
    measure,
    training_start,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = {"layout": "masked", "n_symbols": 5, "train_fraction": 0.6, "seed": 0}
MODEL = {"n_layers": 2, "n_heads": 1, "d_model": 8, "d_head": 8, "normalization": None}
MODEL |= {"use_bias": False, "freeze_W_V": True, "freeze_W_O": True}
TRAIN = {
    **{"optimizer": "AdamW", "lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.01},
    **{"batch_size": 7, "unit": "step", "length": 1, "log_every": 1, "checkpoint_every": 1},
    **{"schedule": None, "clip_grad_norm": None, "stop": None, "compile": False},
    **{"weight_seeds": [0], "batch_seeds": [0], "drop_last": False, "draw": "same_order"},
}
FRESH = ("fresh_train", "fresh_all")
FIRST = ["1....", "1....", "11...", ".....", "....."]
FURTHER = ["1....", "1....", "11...", "..1..", "..11."]
PARAMS = read_params(ROOT / "params.yaml")


def make_data(**changes: Any) -> tuple[task.DataSettings, dict[str, Tensor]]:
    settings = task.DataSettings.parse(DATA | changes, "data")
    return settings, task.generate(settings, torch.Generator().manual_seed(settings.seed))


def make_train(**changes: Any) -> task.TrainSettings:
    return task.TrainSettings.parse(TRAIN | changes, "train")


def make_model(settings: task.DataSettings, seed: int = 0, **changes: Any) -> Transformer:
    shape = model.ModelSettings.parse(MODEL | changes, "model")
    return model.build(shape, settings, torch.Generator().manual_seed(seed))


# Task


def test_the_start_that_was_published() -> None:
    settings, data = make_data(n_symbols=100, train_fraction=0.8)
    first = [(60, 44), (28, 90), (93, 99)]
    assert data["inputs"][:3].tolist() == [[a, b, 101, 100, 100] for a, b in first]
    assert data["targets"][:3].tolist() == [list(pair) for pair in first]
    assert data["all_inputs"][data["validation"][0]].tolist() == [80, 52, 101, 100, 100]
    assert (len(data["inputs"]), len(data["validation"])) == (8000, 2000)
    start = training_start(data, settings, make_train(batch_size=128, drop_last=True))
    held_out = start[start["item"] == "first_held_out_lists"]
    assert held_out["value"].tolist()[:2] == [80, 52]


LAYOUTS = {
    "next_token": {"train_fraction": None, "n_lists": 40, "n_sampled": 3},
    "in_place": {},
    "masked": {},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fixed_tokens_are_those_that_no_list_changes(layout: str) -> None:
    settings, data = make_data(layout=layout, **LAYOUTS[layout])
    tokens = torch.cat([data["inputs"], data["all_inputs"]])
    for position, token in enumerate(settings.fixed_tokens):
        found = tokens[:, position].unique().tolist()
        assert found == ([token] if token is not None else [0, 1, 2, 3, 4])
    assert tokens.max() == settings.n_tokens - 1
    assert make_model(settings).settings.fixed_tokens == settings.fixed_tokens


# Ways to draw batches


def drawn(train: task.TrainSettings, n: int, seed: int = 0) -> tuple[Any, list[dict[str, Tensor]]]:
    settings, data = make_data()
    order = torch.Generator().manual_seed(seed)
    stream = task.batches(train.select(data), settings, train, order)
    return stream, [dict(stream.next()) for _ in range(n)]


@pytest.mark.parametrize("how", FRESH)
def test_fresh_draws_come_from_all_lists_that_they_may_come_from(how: str) -> None:
    _, data = make_data()
    _, batches = drawn(make_train(draw=how, batch_size=40), 100)
    assert all(batch["inputs"].shape == (40, 5) for batch in batches)
    lists = torch.cat([batch["inputs"] for batch in batches])
    assert torch.equal(lists[:, :2], torch.cat([batch["targets"] for batch in batches]))
    allowed = data["inputs"] if how == "fresh_train" else data["all_inputs"]
    counts = lists.unique(dim=0, return_counts=True)
    assert torch.equal(counts[0], allowed.unique(dim=0))
    # 4,000 draws: a count is binomial, with a standard deviation below sqrt(4000 / n_lists).
    expected = 4000 / len(allowed)
    assert (counts[1] - expected).abs().max() < 5 * expected**0.5
    # Independent draws repeat a list within a batch of more lists than there are.
    assert len(batches[0]["inputs"].unique(dim=0)) < 40


@pytest.mark.parametrize("how", ["same_order", "new_orders", *FRESH])
@pytest.mark.parametrize("n_before", [1, task.BLOCK - 1, task.BLOCK, task.BLOCK + 3])
def test_a_resumed_stream_goes_on_with_the_same_bytes(how: str, n_before: int) -> None:
    train = make_train(draw=how)
    stream, _ = drawn(train, n_before)
    state = stream.state()
    expected = [stream.next() for _ in range(task.BLOCK + 5)]
    other, _ = drawn(train, 2, seed=1)
    other.restore(*state)
    for batch in expected:
        again = other.next()
        assert all(torch.equal(batch[name], again[name]) for name in ("inputs", "targets"))


def test_seeds_and_draws_differ() -> None:
    _, first = drawn(make_train(draw="fresh_all"), 1)
    _, other = drawn(make_train(draw="fresh_all"), 1, seed=1)
    assert not torch.equal(first[0]["inputs"], other[0]["inputs"])


def test_with_all_lists_drawn_nothing_is_held_out() -> None:
    settings, data = make_data()
    for how, name, n_train in (
        ("fresh_train", "validation lists", 15),
        ("fresh_all", "all lists", 25),
    ):
        train = make_train(draw=how)
        selected = train.select(data)
        found, lists = task.evaluation_lists(selected)
        assert (found, len(lists["inputs"])) == (name, 10 if how == "fresh_train" else 25)
        assert len(selected["inputs"]) == train.n_train(settings) == n_train
        items = training_start(selected, settings, train).groupby("item")["value"].agg(list)
        assert items["held_out_lists"] == [10 if how == "fresh_train" else 0]
        assert "unseen_lists" not in items


@pytest.mark.parametrize("change", [{"drop_last": True}, {"unit": "epoch"}])
@pytest.mark.parametrize("how", FRESH)
def test_fresh_draws_have_no_epochs(how: str, change: dict[str, Any]) -> None:
    make_train(draw="new_orders", **change)
    with pytest.raises(InputError, match=rf"draw: found {how}; allowed with it are unit: step"):
        make_train(draw=how, **change)


def test_lists_for_mean_patterns_are_those_that_batches_come_from() -> None:
    settings, _ = make_data()
    ablate = ablations.AblateSettings.parse({"sample": [2, 1], "mean_lists": 20}, "ablate")
    ablate.check(settings, make_train(draw="fresh_all"))
    with pytest.raises(InputError, match=r"ablate.mean_lists: found 20; allowed is at most 15"):
        ablate.check(settings, make_train(draw="fresh_train"))


# Model


def test_the_masks_as_drawn() -> None:
    settings, data = make_data()
    made = make_model(settings, n_layers=3)
    assert made.settings.allowed == [
        [[cell == "1" for cell in row] for row in mask] for mask in (FIRST, FURTHER, FURTHER)
    ]
    cache = activations(made, data["all_inputs"])
    for layer, drawn_mask in enumerate((FIRST, FURTHER, FURTHER)):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        assert ((pattern > 0).all(0)[0].tolist()) == [[c == "1" for c in row] for row in drawn_mask]


def test_a_blind_output_is_a_row_of_zeros_and_adds_nothing() -> None:
    settings, data = make_data()
    for norm in (None, "LN"):
        made = make_model(settings, normalization=norm)
        with torch.no_grad():
            _, cache = made.run_with_cache(data["all_inputs"])
        outputs = list(task.OUTPUTS)
        assert (cache["blocks.0.attn.hook_pattern"][:, :, outputs] == 0).all()
        assert (cache["blocks.0.hook_attn_out"][:, outputs] == 0).all()
        assert torch.equal(
            cache["blocks.0.hook_resid_post"][:, outputs],
            cache["blocks.0.hook_resid_pre"][:, outputs],
        )
        assert (cache["blocks.0.hook_attn_out"][:, task.SEP] != 0).any()


def test_logits_of_two_layers_by_hand() -> None:
    """The mixtures of embeddings that the paper writes down, with the weights of the patterns."""
    settings, data = make_data()
    made = make_model(settings)
    tokens = data["all_inputs"]
    with torch.no_grad():
        logits, cache = made.run_with_cache(tokens)
        fast = made(tokens, read=task.OUTPUTS)
    W_E, W_pos, W_U = (
        made.get_parameter(name) for name in ("embed.W_E", "pos_embed.W_pos", "unembed.W_U")
    )
    resid = (W_E[tokens] + W_pos).detach()
    d1, d2, separator, o1, o2 = resid.unbind(1)
    first, second = (cache[f"blocks.{i}.attn.hook_pattern"][:, 0] for i in range(2))
    at = separator + first[:, 2, :1] * d1 + first[:, 2, 1:2] * d2
    written = torch.stack([o1 + at, o2 + second[:, 4, 2:3] * at + second[:, 4, 3:4] * o1], 1)
    by_hand = written @ W_U.detach()
    torch.testing.assert_close(logits[:, 3:], by_hand)
    torch.testing.assert_close(fast, by_hand)


def test_a_blind_query_has_to_be_asked_for() -> None:
    settings, _ = make_data()
    asked = make_model(settings).settings.model_dump()
    assert asked["blind_queries"]
    with pytest.raises(InputError, match=r"mask row 3 is '\.\.\.\.\.'; a query must see"):
        TransformerSettings.parse(asked | {"blind_queries": False}, "model")
    for layout in ("next_token", "in_place"):
        other, _ = make_data(layout=layout, **LAYOUTS[layout])
        assert not make_model(other).settings.blind_queries


def test_one_layer_is_refused() -> None:
    settings, _ = make_data()
    with pytest.raises(
        InputError, match=r"model.n_layers: found 1; allowed are 2 or more, because"
    ):
        make_model(settings, n_layers=1)


@pytest.mark.parametrize(
    ("run", "variant", "trainable"),
    [
        ("order_by_scale_2l", "", 29_760),
        ("order_by_scale_3l", "", 37_952),
        ("order_by_scale_widths", "w128", 92_288),  # what the paper prints for two layers
    ],
)
def test_parameters_at_the_paper_scale(run: str, variant: str, trainable: int) -> None:
    entry = find_run(PARAMS | {"scale": "paper"}, run)
    architecture = load_model("list_copy")
    made = architecture.build(
        entry.section("model", architecture.ModelSettings, variant),
        entry.section("data", task.DataSettings),
        torch.Generator().manual_seed(0),
    )
    assert isinstance(made, Transformer)
    assert architecture_table(made)["trainable"].item() == trainable


# Measures


def test_ranges_follow_the_mask_of_each_layer() -> None:
    allowed = [[[cell == "1" for cell in row] for row in mask] for mask in (FIRST, FURTHER)]
    ranges = pattern_ranges(np.zeros((2, 3, 1, 5, 5)), allowed)
    cells = ranges[["layer", "query", "key"]].to_numpy().tolist()
    assert cells == [[0, "SEP", "d1"], [0, "SEP", "d2"], [1, "o2", "SEP"], [1, "o2", "o1"]]


def test_cells_that_the_mask_of_a_layer_forbids_are_blank() -> None:
    settings, data = make_data()
    table = pattern_table(make_model(settings), {"all lists": data["all_inputs"]})
    for layer, drawn_mask in enumerate((FIRST, FURTHER)):
        cells = table.loc[table["layer"] == layer, "weight"].to_numpy().reshape(5, 5)
        assert (~np.isnan(cells)).tolist() == [[c == "1" for c in row] for row in drawn_mask]


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Two runs of one model, one that is evaluated on all lists, and a run of eight cells."""
    settings, data = make_data()
    to_measure = MeasureSettings.parse({"sample": [2, 1], "probe": None}, "measure")
    to_ablate = ablations.AblateSettings.parse({"sample": [2, 1], "mean_lists": None}, "ablate")
    flags = [
        (bias, value, output)
        for bias in (False, True)
        for value in (False, True)
        for output in (False, True)
    ]
    cases: list[tuple[str, str, str, dict[str, Any]]] = [
        ("e_2l", "", "same_order", {}),
        ("e_2l_new", "", "new_orders", {"n_layers": 3}),
        ("e_all", "LN", "fresh_all", {"normalization": "LN"}),
        *(
            (
                "e_grid",
                f"cell{i}",
                "same_order",
                {"use_bias": bias, "freeze_W_V": v, "freeze_W_O": o},
            )
            for i, (bias, v, o) in enumerate(flags)
        ),
    ]
    parts: dict[str, list[pd.DataFrame]] = {}
    for run, variant, how, shape in cases:
        made, selected = make_model(settings, **shape), make_train(draw=how).select(data)
        made_tables, values = measure(made, [], selected, settings, to_measure)
        assert values["leaked_attention"] == 0
        assert all(np.isfinite(value) for value in values.values())
        made_tables["ablations"] = ablations.ablate(made, selected, settings, to_ablate)
        assert np.isfinite(made_tables["ablations"]["loss"]).all()
        with torch.no_grad():
            log = [{"step": step, **task.evaluate(made, selected)} for step in (0, 100)]
        made_tables["training"] = pd.DataFrame(log).assign(train_loss=1.0)
        for name, table in made_tables.items():
            parts.setdefault(name, []).append(table.assign(run=run, variant=variant, seed=0))
    return {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}


def render_settings() -> RenderSettings:
    published = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    grid = {
        **{"solved": 0.999, "plateau": [0.42, 0.52], "jumped": [0.8, 0.999]},
        "batches": {"e_2l": "same order", "e_all": "fresh from all lists"},
        **{"published_accuracy": {"e_grid": published}, "published_steps": {}},
    }
    return RenderSettings.parse({"published_accuracy": None, "grid": grid}, "render")


def test_published_cells_of_one_run_stand_beside_their_architecture(
    tables: dict[str, pd.DataFrame],
) -> None:
    settings = render_settings()
    assert settings.grid is not None
    cells = grid_cells(summarise(tables, settings)["models"], settings.grid)
    assert cells["published_accuracy"].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert cells["use_bias"].tolist() == [False] * 4 + [True] * 4
    assert cells["freeze_W_O"].tolist() == [False, True] * 4


def test_every_figure_has_a_title(tables: dict[str, pd.DataFrame]) -> None:
    settings = render_settings()
    drawings = draw(tables | summarise(tables, settings), settings)
    drawn_figures = {name: drawing.make() for name, drawing in drawings.items()}
    assert {"attention_mean", "ablations", "batches", "grid_table", "loss"} <= set(drawn_figures)
    for name, figure in drawn_figures.items():
        assert figure.layout.title.text, name
    title = drawn_figures["attention_mean"].layout.title.text
    assert title == "Attention patterns, mean over validation lists"  # those of the first run
    assert len(drawn_figures["batches"].data) == 2


def test_without_a_grid_the_other_figures_are_there(tables: dict[str, pd.DataFrame]) -> None:
    settings = render_settings()
    some = {name: table[table["run"] != "e_grid"] for name, table in tables.items()}
    figures = draw(some | summarise(some, settings), settings)
    assert {"batches", "loss"} <= set(figures)
    assert not [name for name in figures if name.startswith("grid")]
