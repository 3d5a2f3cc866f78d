"""What the paper scale trains and what git carries of it, by params.yaml."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from project import ROOT

from toycircuits.core.config import Run, find_run, read_params
from toycircuits.core.slices import load_model
from toycircuits.core.train_run import read_settings

PARAMS = read_params(ROOT / "params.yaml") | {"scale": "paper"}
LIMIT = 25_000_000  # bytes of all final weights in git
BOTH_FROZEN = {"freeze_W_V": True, "freeze_W_O": True}


def run_of(name: str) -> Run:
    return find_run(PARAMS, name)


def weight_seeds(name: str) -> tuple[int, ...]:
    return read_settings(run_of(name)).train.weight_seeds


def runs_of(experiment: str) -> list[str]:
    return list(PARAMS["experiments"][experiment]["runs"])


@pytest.mark.parametrize(
    ("run", "seeds"),
    [
        ("modular_subtraction", range(999, 1009)),
        ("modular_subtraction_long", [1000]),
        ("list_copy_10", range(20)),
        ("list_copy_100", range(5)),
        ("list_copy_100_reshuffle", range(5)),
        ("reverse_increment_sequential", range(10)),
        ("reverse_increment_random", range(10)),
        ("linear_regression_h1", range(1024, 1027)),
        ("linear_regression_h2", range(1024, 1034)),
        ("linear_regression_h4", range(1024, 1027)),
        ("linear_regression_h8", range(1024, 1027)),
        ("linear_regression_inits", range(1024, 1027)),
        ("linear_regression_stack", range(1024, 1027)),
        ("order_by_scale_grid", range(10, 13)),
        ("order_by_scale_widths", range(10, 13)),
        *(
            (name, range(10))
            for name in runs_of("order_by_scale")
            if name not in ("order_by_scale_grid", "order_by_scale_widths")
        ),
    ],
)
def test_seeds(run: str, seeds: Any) -> None:
    assert weight_seeds(run) == tuple(seeds)
    batch_seeds = read_settings(run_of(run)).train.batch_seeds
    assert batch_seeds in (None, tuple(seeds))


def test_one_seed_that_did_not_grok_goes_on() -> None:
    usual, longer = (read_settings(run_of(f"modular_subtraction{end}")) for end in ("", "_long"))
    assert longer.train.length == 40_000
    same = {"weight_seeds": usual.train.weight_seeds, "length": usual.train.length}
    assert longer.train.model_copy(update=same) == usual.train


def trainings(experiment: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Run, settings of the model and everything that the result depends on, for each model."""
    for name in runs_of(experiment):
        settings = read_settings(run_of(name))
        train = settings.train.model_dump(exclude={"weight_seeds", "batch_seeds"})
        for model, seeds in itertools.product(settings.models.values(), settings.train.seed_pairs):
            shape = model.model_dump()
            yield (
                name,
                shape,
                repr((settings.data.model_dump(), sorted(shape.items()), train, seeds)),
            )


@pytest.mark.parametrize("experiment", ["list_copy_100", "order_by_scale"])
def test_no_model_is_trained_twice(experiment: str) -> None:
    counts = Counter(key for _, _, key in trainings(experiment))
    assert max(counts.values()) == 1


def test_two_layer_cells_have_three_seeds_and_ten_where_both_matrices_are_frozen() -> None:
    """With batches of 128 in the published order, at the width of the published grid."""
    counts: Counter[str] = Counter()
    frozen = set()
    for name, shape, _ in trainings("list_copy_100"):
        train = read_settings(run_of(name)).train
        usual = train.draw == "same_order" and train.batch_size == 128  # type: ignore[attr-defined]
        if shape["n_layers"] == 2 and shape["d_model"] == 128 and usual:
            cell = repr(sorted(shape.items()))
            counts[cell] += 1
            if shape | BOTH_FROZEN == shape:
                frozen.add(cell)
    assert len(counts) == 16
    assert {cell: 10 if cell in frozen else 3 for cell in counts} == counts
    assert len(frozen) == 4


def test_the_sweep_varies_one_thing_at_a_time() -> None:
    """Draw, size of batch and LayerNorm, with both matrices frozen and as many lists seen."""
    cells: Counter[tuple[Any, ...]] = Counter()
    for name, shape, _ in trainings("order_by_scale"):
        train: Any = read_settings(run_of(name)).train
        if weight_seeds(name) == tuple(range(10)) and shape["n_layers"] == 2:
            assert (shape["d_model"], shape["use_bias"]) == (64, False)
            assert shape | BOTH_FROZEN == shape
            assert train.length * train.batch_size == 50_000 * 128
            cells[train.draw, train.batch_size, shape["normalization"]] += 1
    draws = ("same_order", "new_orders", "fresh_train", "fresh_all")
    assert set(cells) == {*itertools.product(draws, (128, 1024), (None, "LN"))}
    assert set(cells.values()) == {10}


def test_widths_are_those_that_the_notebook_lists() -> None:
    shapes = [shape for name, shape, _ in trainings("list_copy_100") if name.endswith("_widths")]
    flags = ("normalization", "use_bias", "freeze_W_O")
    cells = Counter((shape["d_model"], *(shape[flag] for flag in flags)) for shape in shapes)
    options = ((64, 32, 16, 8, 4), (None, "LN"), (False, True), (False, True))
    assert set(cells) == {*itertools.product(*options)}
    assert set(cells.values()) == {3}
    assert all(shape["d_head"] == shape["d_model"] and shape["freeze_W_V"] for shape in shapes)


def bytes_of(name: str) -> int:
    """Bytes of the trained parameters of all models of a run; files have no others."""
    run, settings = run_of(name), read_settings(run_of(name))
    total = 0
    for shape in settings.models.values():
        with torch.device("meta"):
            model = load_model(run.entry.slice).build(shape, settings.data, torch.Generator("cpu"))
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        total += sum(weight.numel() * weight.element_size() for weight in weights)
    return total * len(settings.train.seed_pairs)


def test_final_weights_in_git_stay_small() -> None:
    sizes = {name: bytes_of(name) for name in PARAMS["released"]}
    assert sum(sizes.values()) < LIMIT, sizes


def test_released_runs() -> None:
    """All that fit: the main runs, and of the two-layer cells some with both matrices frozen."""
    grids = [name for name in PARAMS["runs"] if name not in PARAMS["released"]]
    assert all(name.startswith(("list_copy_100_", "order_by_scale_")) for name in grids)
    assert {"order_by_scale_2l", "order_by_scale_3l"} <= {*PARAMS["released"]}
