"""The claims of the list-copy experiments and reverse_increment, against tables made for them."""

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from toycircuits.claims.card import Card, read_card
from toycircuits.claims.verdict import judge
from toycircuits.core.analyses import load_figures, load_metrics
from toycircuits.core.config import find_run, read_params, runs_of
from toycircuits.core.slices import load_task
from toycircuits.core.tables import read_tables
from toycircuits.experiments.list_copy.figures.draw import RenderSettings, summarise

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("list_copy_10", "list_copy_100", "order_by_scale", "reverse_increment")
CELLS = ("free_V_free_O", "free_V_frozen_O", "frozen_V_free_O", "frozen_V_frozen_O")
RERUN = "the authors' later rerun"
Tables = dict[str, pd.DataFrame]


def card(experiment: str) -> Card:
    return read_card(ROOT / f"claims/{experiment}.yaml")


def outcomes(experiment: str, tables: Tables, names: set[str] | None = None) -> dict[str, str]:
    """Outcome at the paper scale of each claim about one of `tables`, by name."""
    claims = [c for c in card(experiment).claims if names is None or c.id in names]
    claims = [claim for claim in claims if claim.measured.table in tables]
    return {claim.id: judge(claim, tables, "paper")["outcome"] for claim in claims}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_cells_are_there_at_the_scale_in_git(experiment: str) -> None:
    folder = ROOT / "reports" / experiment
    params = read_params(ROOT / "params.yaml")
    tables = read_tables(folder / "tables", runs_of(params, experiment))
    scale = params["scale"]
    figures = load_figures(params["experiments"][experiment]["slice"])
    settings = figures.RenderSettings.parse(params[scale][experiment]["render"], "render")
    summaries = figures.summarise(tables, settings)
    tables |= {f"summary/{name}": table for name, table in summaries.items()}
    for claim in card(experiment).claims:
        if claim.measured.table != "training_start":  # needs no trained model; see the next test
            assert judge(claim, tables, scale)["models"] > 0, claim.id


@functools.cache
def training_start(experiment: str, seed: int) -> pd.DataFrame:
    """The table of all runs at the paper scale, with another seed of the data."""
    params = read_params(ROOT / "params.yaml") | {"scale": "paper"}
    parts = []
    for name, entry in params["runs"].items():
        if entry["experiment"] == experiment:
            run = find_run(params, name)
            task: Any = load_task(entry["slice"])
            metrics: Any = load_metrics(entry["slice"])
            settings = run.section("data", task.DataSettings)
            data = task.generate(settings, torch.Generator().manual_seed(seed))
            train = run.section("train", task.TrainSettings)
            table = metrics.training_start(train.select(data), settings, train)
            parts.append(table.assign(run=name, variant="", seed=0))
    return pd.concat(parts)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_trainings_are_given_is_what_was_published(experiment: str) -> None:
    judged = outcomes(experiment, {"training_start": training_start(experiment, 0)})
    assert judged
    assert set(judged.values()) == {"reproduced"}


def test_another_seed_fails() -> None:
    for experiment in ("list_copy_100", "order_by_scale"):
        judged = outcomes(experiment, {"training_start": training_start(experiment, 1)})
        wrong = {name for name, outcome in judged.items() if outcome != "reproduced"}
        assert wrong == {"first_lists", "first_validation_list"}
    both = training_start("reverse_increment", 0)
    swapped = both[both["run"] == "reverse_increment_random"]
    swapped = swapped.assign(run="reverse_increment_sequential")
    judged = outcomes("reverse_increment", {"training_start": swapped})
    wrong = {name for name, outcome in judged.items() if outcome != "reproduced"}
    assert wrong == {"sequential_holdout_x0", "sequential_holdout_x1"}


# The course of accuracy of list_copy_10

COURSE = {
    "accuracy_epoch_1",
    "accuracy_epoch_2",
    "accuracy_epoch_3",
    "dips_are_rare",
    "dips_happen",
}


def course(epochs: list[float]) -> Tables:
    """A training log with seven validations per epoch, all with the accuracy of its end."""
    rows = [{"step": 7 * i, "accuracy_sampled": epochs[(i - 1) // 7]} for i in range(1, 141)]
    log = pd.DataFrame([{"step": 0, "accuracy_sampled": 0.01}, *rows])
    log = log.assign(accuracy=log["accuracy_sampled"], train_loss=1.0, variant="", seed=0)
    tables = {"training": log.assign(run="list_copy_10")}
    settings = RenderSettings(published_accuracy=None)
    return tables | {"summary/models": summarise(tables, settings)["models"]}


@pytest.mark.parametrize(
    ("epochs", "failing"),
    [
        ([0.176, 0.788, *[1.0] * 11, 0.672, *[1.0] * 6], set()),
        ([0.176, 0.788, *[1.0] * 18], {"dips_happen"}),
        ([0.01] * 20, COURSE),
        ([0.9, 1.0, 1.0, *[0.94] * 17], COURSE - {"accuracy_epoch_3", "dips_happen"}),
    ],
)
def test_the_course_is_judged_epoch_by_epoch(epochs: list[float], failing: set[str]) -> None:
    judged = outcomes("list_copy_10", course(epochs), COURSE)
    assert set(judged) == COURSE
    assert {name for name, outcome in judged.items() if outcome != "reproduced"} == failing


# The grid of list_copy_100

GRID = {
    "list_copy_100_2l": [0.4625, 0.4895, 0.4630, 0.9173],
    "list_copy_100_2l_bias": [0.8680, 0.8945, 0.4645, 0.9183],
    "list_copy_100_2l_ln": [0.4743, 0.4607, 0.4632, 0.4485],
    "list_copy_100_2l_ln_bias": [0.4733, 0.4647, 0.4755, 0.4602],
}
BACK = 0.8945
STEPS = {
    "list_copy_100_3l": [100, 100, 200, 3300],
    "list_copy_100_3l_bias": [100, 200, 100, 2800],
    "list_copy_100_3l_ln": [100] * 4,
    "list_copy_100_3l_ln_bias": [200] * 4,
}


def grid(accuracies: dict[str, list[float]], steps: dict[str, list[int]]) -> Tables:
    """Three seeds a cell, all alike; those that end above 0.8 jump at step 25,000.

    Those that end at `BACK` fall back to the plateau for a while. With other seeds and with large
    batches, models end as those of the grid do.
    """
    models: list[dict[str, Any]] = []
    logs: list[dict[str, Any]] = []
    ends_of = {
        run: dict(zip(CELLS, ends, strict=True)) for run, ends in (accuracies | steps).items()
    }
    for bias in ("", "_bias"):
        frozen = {"no_LN": accuracies[f"list_copy_100_2l{bias}"][3]}
        frozen["LN"] = accuracies[f"list_copy_100_2l_ln{bias}"][3]
        ends_of[f"list_copy_100_2l_frozen{bias}"] = frozen
    for seed in range(3):
        for run, ends in ends_of.items():
            for variant, end in ends.items():
                cell = {"run": run, "variant": variant, "seed": seed}
                if run in steps:
                    solved = {"n_layers": 3, "d_model": 128, "step": end, "accuracy": 1.0}
                    models.append(cell | solved)
                    continue
                ended = {"n_layers": 2, "d_model": 128, "step": 50_000, "accuracy": end}
                at = {0: 0.01, 24_900: 0.47, 25_000: end, 50_000: end}
                if end == BACK:
                    at |= {30_000: 0.48}
                drop = end - 0.48 if end == BACK else 0.0
                models.append(cell | ended | {"largest_drop": drop})
                logs += [cell | {"step": step, "accuracy": a} for step, a in at.items()]
        for variant, run in {"no_LN": "list_copy_100_2l", "LN": "list_copy_100_2l_ln"}.items():
            for batches in ("large", "large_reshuffle"):
                cell = {"run": f"list_copy_100_2l_{batches}", "variant": variant, "seed": seed}
                ended = {"n_layers": 2, "d_model": 128, "step": 20_000}
                models.append(cell | ended | {"accuracy": accuracies[run][3]})
    return {"summary/models": pd.DataFrame(models), "training": pd.DataFrame(logs)}


def test_published_cells_pass_and_contradict_the_rerun() -> None:
    judged = outcomes("list_copy_100", grid(GRID, STEPS))
    sources = {claim.id: claim.source for claim in card("list_copy_100").claims}
    theirs = {name: outcome for name, outcome in judged.items() if sources[name] == RERUN}
    assert len(theirs) == 8
    assert set(theirs.values()) == {"not reproduced"}
    assert judged.pop("new_orders_free_ln") == "not reproduced"  # here no order frees them
    others = {name: outcome for name, outcome in judged.items() if sources[name] != RERUN}
    assert len(others) == 19
    assert set(others.values()) == {"reproduced"}


def test_the_rerun_passes_and_contradicts_published_cells() -> None:
    plain = [0.47, 0.46, 0.47, 0.504]
    rerun = {run: [0.97] * 4 if "_ln" in run else plain for run in GRID}
    slow = {run: [700] * 4 for run in STEPS}
    judged = outcomes("list_copy_100", grid(rerun, slow))
    passing = {name for name, outcome in judged.items() if outcome == "reproduced"}
    assert {name for name in judged if name.startswith("rerun_")} <= passing
    untouched = {"two_layers_plateau_or_jump", "two_layers_never_solve", "jumps_come_late"}
    untouched |= {"three_layers_solve", "two_layers_trained_stay", "two_layers_bias_stay"}
    untouched |= {"new_orders_free_ln"}
    assert passing == untouched | {name for name in judged if name.startswith("rerun_")}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"accuracy": 0.998}, "three_layers_solve"),
        ({"accuracy": 0.7}, "two_layers_plateau_or_jump"),
        ({"accuracy": 0.999}, "two_layers_never_solve"),
        ({"step": 14_900, "accuracy": 0.9}, "jumps_come_late"),
    ],
)
def test_one_model_is_enough_to_fail(changes: dict[str, float], failing: str) -> None:
    tables = grid(GRID, STEPS)
    models = tables["summary/models"]
    if failing in ("two_layers_never_solve", "jumps_come_late"):
        tables["training"].loc[1, list(changes)] = list(changes.values())
    else:
        row = models.index[models["n_layers"] == (3 if "three" in failing else 2)][0]
        models.loc[row, list(changes)] = list(changes.values())
    judged = outcomes("list_copy_100", tables)
    assert failing in {name for name, outcome in judged.items() if outcome != "reproduced"}
