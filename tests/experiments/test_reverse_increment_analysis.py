"""Reversed strings: mirrored attention, readings, ablations, tables and figures."""

import io
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from made_strings import (
    RENDER,
    SCORES,
    SPLITS,
    ablate,
    hooked_scores,
    measured,
    only,
    scrambled,
    seen,
    solver,
)

from toycircuits.experiments.reverse_increment import ablations, task
from toycircuits.experiments.reverse_increment.figures.draw import RenderSettings, draw, summarise
from toycircuits.experiments.reverse_increment.metrics import measure as metrics
from toycircuits.experiments.reverse_increment.metrics.mirror import mirror_weights
from toycircuits.experiments.reverse_increment.metrics.readings import confusion, cosines, readings
from toycircuits.experiments.reverse_increment.metrics.samples import EVERYTHING


@pytest.mark.parametrize("planted", [0, 1, -2])
def test_mirror_weights_of_a_planted_diagonal(planted: int) -> None:
    """In head 0 output i attends to key n - i + planted, or to BOS where the string ends."""
    n = 4
    pattern = torch.zeros(5, 2, n, 2 * n)
    for i in range(n):
        key = n - i + planted
        pattern[:, 0, i, key if 1 <= key <= n else 0] = 1.0
        pattern[:, 1, i, 0] = 1.0
    for shift in range(1 - n, n):
        weight, share = mirror_weights(pattern, shift)
        assert weight.tolist() == share.tolist() == [float(shift == planted), 0.0]


def test_mirror_weights_against_loops() -> None:
    pattern = torch.rand(6, 2, 5, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for shift in range(-4, 5):
        weight, share = mirror_weights(pattern, shift)
        for head in range(2):
            rows = [(heads[head, i], 5 - i + shift) for heads in pattern.numpy() for i in range(5)]
            inside = [(row, key) for row, key in rows if 1 <= key <= 5]
            expected = np.mean([row[key] for row, key in inside])
            assert weight[head].item() == pytest.approx(expected, rel=1e-5)
            expected = np.mean([row.argmax() == key for row, key in inside])
            assert share[head].item() == pytest.approx(expected, rel=1e-5)


def test_cosines_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    resid = torch.randn(7, 4, 5, generator=generator)
    embeddings = torch.randn(3, 5, generator=generator)
    a, b = resid.numpy(), embeddings.numpy()
    expected = a @ b.T / np.linalg.norm(a, axis=2)[:, :, None] / np.linalg.norm(b, axis=1)
    assert cosines(resid, embeddings).numpy() == pytest.approx(expected, abs=1e-6)


def test_confusion_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (50, 4), generator=generator)  # symbol 3 never occurs
    read = torch.randint(5, (50, 4), generator=generator)  # 4 is BOS
    shares = confusion(read, targets, 4)
    for target in range(3):
        read_there = read.numpy()[targets.numpy() == target]
        expected = [np.mean(read_there == symbol) for symbol in range(4)]
        assert shares[target].tolist() == pytest.approx(expected)
        assert shares[target].sum() < 1
    assert np.isnan(shares[3]).all()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_planted_solver_is_found(layer: int) -> None:
    settings, _ = seen()
    made, start = solver(settings, layer), solver(settings, layer)
    for parameter in start.parameters():
        parameter.data.zero_()
    tables, values = measured(made, [start, made])
    uniform = np.mean([1 / (4 + i + 1) for i in range(4)])  # query 4 + i sees so many keys
    assert values["holdout_accuracy"] == values["train_accuracy_string"] == 1
    for where, case, weight, share in (
        (layer, "trained", 1.0, 1.0),
        (1 - layer, "trained", uniform, 0.0),
        (layer, "untrained", uniform, 0.0),
    ):
        name = f"layer{where}_head0_{case}"
        assert values[f"mirror_weight_{name}"] == pytest.approx(weight)
        assert values[f"mirror_share_{name}"] == share
    for shift, share in (("", 1), ("_plus_1", 0), ("_plus_2", 0)):
        assert values[f"prediction_is_answer{shift}"] == share
        assert values[f"similarity_trained_is_answer{shift}"] == share
    mirror = tables["mirror"].query(f"layer == {layer} and case == 'trained'").set_index("shift")
    assert mirror.index.tolist() == list(range(-3, 4))
    assert mirror["weight"].tolist() == pytest.approx([0, 0, 0, 1, 0, 0, 0], abs=1e-6)
    assert mirror.loc[0, "uniform"] == pytest.approx(uniform)
    course = tables["mirror_course"].query(f"layer == {layer}")
    assert course["step"].tolist() == [0, 7]
    assert course["argmax_share"].tolist() == [0, 1]
    cells = tables["confusion"].query("case != 'similarity, untrained'")
    assert len(cells) == 2 * 9
    assert (cells["share"] == (cells["target"] == cells["read"])).all()
    assert values["similarity_untrained_is_answer"] < 0.7


def test_readings_name_the_embedding_that_the_residual_stream_is_made_of() -> None:
    settings, data = seen()
    made = scrambled(settings)
    targets = task.part(data, "holdout")["targets"]
    W_E = made.get_parameter("embed.W_E").detach()
    acts = {"logits": F.one_hot((targets + 1) % 3, 4).double()}
    acts["blocks.0.hook_resid_post"] = -W_E[targets]
    acts["blocks.1.hook_resid_post"] = 3.0 * W_E[targets]
    read = readings({"trained": made}, {"trained": acts})
    values = metrics.key_metrics(pd.DataFrame({"shift": []}), read, targets, 3)
    for shift, share in (("", 1), ("_plus_1", 0), ("_plus_2", 0)):
        assert values[f"similarity_trained_is_answer{shift}"] == share
    assert values["prediction_is_answer"] == 0
    assert values["prediction_is_answer_plus_1"] == 1


def test_tables_of_samples_show_what_the_cache_holds() -> None:
    settings, data = seen()
    made = scrambled(settings, n_heads=2)
    tables, _ = measured(made, [made])
    holdout = task.part(data, "holdout")
    with torch.no_grad():
        _, cache = made.run_with_cache(holdout["inputs"])
    rows = [0, 7, 14]  # three of 21, evenly spaced
    names = [" ".join(map(str, holdout["inputs"][row, 1:5].tolist())) for row in rows]
    patterns = tables["patterns"]
    for layer in range(2):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, :, 4:, 1:5].numpy()
        shown = {EVERYTHING: pattern.mean(0)}
        shown |= {name: pattern[row] for name, row in zip(names, rows, strict=True)}
        of_layer = patterns[patterns["layer"] == layer]
        assert of_layer["string"].unique().tolist() == list(shown)
        for name, values in shown.items():
            weights = of_layer.loc[of_layer["string"] == name, "weight"].to_numpy()
            assert weights.reshape(2, 4, 4) == pytest.approx(values)
    near = cosines(
        cache["blocks.1.hook_resid_post"][:, 4:], made.get_parameter("embed.W_E").detach()[:3]
    )
    for row, name in zip(rows, names, strict=True):
        cells = tables["similarity"].query(f"string == '{name}'")
        assert cells["cosine"].to_numpy().reshape(4, 3) == pytest.approx(near[row].numpy())
        assert cells["target"].tolist()[::3] == holdout["targets"][row].tolist()
        mlp = tables["mlp"].query(f"string == '{name}'")["value"].to_numpy().reshape(4, 4)
        assert mlp == pytest.approx(cache["blocks.0.hook_mlp_out"][row, 4:].numpy())


# Ablations


def test_every_ablation_has_its_row_and_leaves_nothing_behind() -> None:
    made = scrambled(seen()[0])
    before = {name: value.clone() for name, value in made.state_dict().items()}
    table = ablate(made)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert not any(
        point.fwd_hooks or point._forward_hooks or point.bwd_hooks
        for point in made.hook_dict.values()
    )
    expected: list[tuple[str, str | int, str]] = [("none", "none", "none")]
    expected += [(name, layer, "weight_zero") for name in ("W_out", "W_O") for layer in (0, 1)]
    expected += [(name, layer, "mean") for name in ("mlp_out", "attn_out") for layer in (0, 1)]
    for name in ("W_out", "W_O"):
        expected += [(f"random, as many as {name}", "all", "weight_zero")] * 5
    expected += [("none", "none", "restored")]
    columns = table[["component", "layer", "method"]]
    assert list(columns.itertuples(index=False, name=None)) == expected
    assert table[SCORES].iloc[0].tolist() == table[SCORES].iloc[-1].tolist()
    assert table["loss"].iloc[:9].nunique() == 9


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("weight", "output", "bias"),
    [("W_O", "attn_out", "attn.b_O"), ("W_out", "mlp_out", "mlp.b_out")],
)
def test_a_zeroed_matrix_leaves_its_bias(weight: str, output: str, bias: str, layer: int) -> None:
    made = scrambled(seen()[0])
    b = made.get_parameter(f"blocks.{layer}.{bias}").detach()
    row = only(ablate(made), component=weight, layer=layer, method="weight_zero")
    by_hand = hooked_scores(made, f"blocks.{layer}.hook_{output}", b)
    assert {name: row[name] for name in by_hand} == pytest.approx(by_hand)
    at_zero = hooked_scores(made, f"blocks.{layer}.hook_{output}", torch.zeros_like(b))
    assert row["loss"] != pytest.approx(at_zero["loss"], abs=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("output", ["attn_out", "mlp_out"])
def test_means_are_those_of_the_sampled_training_strings(output: str, layer: int) -> None:
    settings, data = seen()
    made, name = scrambled(settings), f"blocks.{layer}.hook_{output}"
    means = {}
    for rows in ("sampled", "holdout"):
        with torch.no_grad():
            _, cache = made.run_with_cache(task.part(data, rows)["inputs"])
        means[rows] = cache[name].mean(0)
    row = only(ablate(made), component=output, layer=layer, method="mean")
    by_hand = hooked_scores(made, name, means["sampled"])
    assert {column: row[column] for column in by_hand} == pytest.approx(by_hand)
    other = hooked_scores(made, name, means["holdout"])
    assert row["loss"] != pytest.approx(other["loss"], abs=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_ablations_of_a_planted_solver(layer: int) -> None:
    """All it knows passes through one head: without it, the token that is read is written."""
    settings, data = seen()
    sampled, holdout = task.part(data, "sampled"), task.part(data, "holdout")
    table = ablate(solver(settings, layer)).set_index(["component", "layer"])["accuracy"].to_dict()
    tokens = F.one_hot(holdout["inputs"][:, 4:], 4)
    mean = 10 * F.one_hot(sampled["targets"], 4).double().mean(0)
    for component, added in (("W_O", 0), ("attn_out", mean)):
        right = ((tokens + added).argmax(-1) == holdout["targets"]).double().mean().item()
        assert 0 < right < 0.7
        assert table[component, layer] == pytest.approx(right)
        assert table[component, 1 - layer] == 1
    assert [table[mlp, other] for mlp in ("W_out", "mlp_out") for other in (0, 1)] == [1] * 4


@pytest.mark.parametrize("n_weights", [1, 64, 384])  # 384: all of them
def test_random_weights_are_zeroed_and_no_others(n_weights: int) -> None:
    made = scrambled(seen()[0])
    weights = {name: p for name, p in made.named_parameters() if ".W_" in name}
    generator = torch.Generator().manual_seed(0)
    changed = ablations.random_weights_zeroed(made, n_weights, generator)
    assert set(changed) == set(weights)
    assert sum(int((weight == 0).sum()) for weight in changed.values()) == n_weights
    assert all(((new == 0) | (new == weights[name])).all() for name, new in changed.items())


def test_controls_zero_as_many_weights_as_the_matrix_has() -> None:
    settings, data = seen()
    made, holdout = scrambled(settings), task.part(data, "holdout")
    generator = torch.Generator().manual_seed(3)
    by_hand = []
    for n_weights in [16 * 4] * 2 + [1 * 2 * 4] * 2:  # W_out, W_O
        other = scrambled(settings)
        other.load_state_dict(
            made.state_dict() | ablations.random_weights_zeroed(made, n_weights, generator)
        )
        with torch.no_grad():
            by_hand.append(task.loss(other, holdout).item())
    table = ablate(made, control_draws=2, control_seed=3)
    controls = table[table["component"].str.startswith("random")]
    assert controls["loss"].tolist() == pytest.approx(by_hand)
    assert controls["draw"].tolist() == [0, 1, 0, 1]
    assert controls["loss"].nunique() == 4


# The tables of two runs, as the stages leave them, and the figures from them


def as_read(table: pd.DataFrame) -> pd.DataFrame:
    """`table` written to its file and read again as the rendering stage does."""
    text = io.StringIO(table.to_csv(index=False, float_format="%.9g"))
    options: dict[str, Any] = {"keep_default_na": False, "na_values": ["", "nan"]}
    return pd.read_csv(text, dtype={"variant": str}, **options).fillna({"variant": ""})


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Two runs of two seeds, untrained but for the random run's first model, which solves the task.

    Beside them what `summarise` makes of them.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for split in ("random", "sequential"):
        settings, data = seen(split)
        for seed in (3, 4):
            start, made = scrambled(settings, 5), scrambled(settings, seed)
            if split == "random" and seed == 3:
                start, made = solver(settings, layer=0), solver(settings, layer=1)
            made_tables, _ = measured(made, [start, made], split)
            with torch.no_grad():
                log = pd.DataFrame([task.evaluate(network, data) for network in (start, made)])
            made_tables["training"] = log.assign(step=[0, 7], lr=[0.1, 0.2], train_loss=1.0)
            made_tables["ablations"] = ablate(made, split)
            labels = {"run": f"ri_{split}", "variant": "", "seed": seed}
            for name, table in made_tables.items():
                parts.setdefault(name, []).append(as_read(table.assign(**labels)))
    read = {name: pd.concat(group, ignore_index=True) for name, group in parts.items()}
    return read | summarise(read, RenderSettings.parse(RENDER, "render"))


@pytest.mark.parametrize("of", ["symbols", "whole strings"])
def test_success_rates_come_with_wilson_intervals(tables: dict[str, pd.DataFrame], of: str) -> None:
    z2 = 1.959963984540054**2
    random, sequential = (only(tables["success"], run=f"ri_{s}", of=of) for s in reversed(SPLITS))
    assert (random["seeds"], random["successes"], random["rate"]) == (2, 1, 0.5)
    half = 0.5 * math.sqrt(z2 / (2 + z2))  # Wilson's formula for 1 of 2
    assert [random["low"], random["high"]] == pytest.approx([0.5 - half, 0.5 + half])
    assert random["least"] < random["mean"] < random["most"] == 1
    assert (sequential["successes"], sequential["rate"], sequential["low"]) == (0, 0, 0)
    assert sequential["high"] == pytest.approx(z2 / (2 + z2))


def test_comparisons_of_runs_and_seeds(tables: dict[str, pd.DataFrame]) -> None:
    models = tables["models"]
    assert models["step"].tolist() == [7] * 4
    random, sequential = (models[models["run"] == f"ri_{s}"] for s in reversed(SPLITS))
    for metric in ("holdout_accuracy", "train_accuracy_string", "holdout_loss"):
        row = only(tables["differences"], run="ri_sequential", less="ri_random", metric=metric)
        by_seed = sequential[metric].to_numpy() - random[metric].to_numpy()
        stats = [row[name] for name in ("mean", "min", "max")]
        assert stats == pytest.approx([by_seed.mean(), by_seed.min(), by_seed.max()])
    for of in ("mirror_weight", "mirror_share"):
        place = {"run": "ri_random", "layer": 1, "head": 0, "case": "trained", "of": of}
        row = only(tables["mirror_summary"], **place)
        assert row["max"] == pytest.approx(1)  # the solver
        assert row["min"] < 0.9
    for run, seeds in models.groupby("run"):
        row = only(tables["readings"], run=run, case="prediction")
        right = seeds["holdout_accuracy"]
        assert [row["min"], row["mean"], row["max"]] == pytest.approx(
            [right.min(), right.mean(), right.max()]
        )
    one_run = {name: table[table["run"] == "ri_random"] for name, table in tables.items()}
    summaries = summarise(one_run, RenderSettings.parse(RENDER, "render"))
    assert summaries["differences"].empty


@pytest.fixture(scope="module")
def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    drawings = draw(tables, RenderSettings.parse(RENDER, "render"))
    return {name: drawing.make() for name, drawing in drawings.items()}


def traces(figure: go.Figure, kind: str) -> list[Any]:
    return [trace for trace in figure.data if trace.type == kind]


def test_every_figure(drawn: dict[str, go.Figure]) -> None:
    expected = ["loss", "accuracy", "accuracy_string", "learning_rate", "ablations", "mlp_output"]
    expected += ["attention_random", "attention_sequential", "attention_seeds", "similarity"]
    expected += ["mirror", "mirror_course", "confusion"]
    assert sorted(drawn) == sorted(expected)
    for name, figure in drawn.items():
        assert isinstance(figure, go.Figure)
        assert figure.layout.title.text, name
        axes = [axis for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
        titled = {axis[0] for axis in axes if figure.layout[axis].title.text}
        assert titled == ({"x"} if name == "ablations" else {"x", "y"}), name  # bars have names
        assert not any("=" in note.text for note in figure.layout.annotations), name
        assert len(figure.data) > 0
    assert len(drawn["loss"].data) == len(drawn["accuracy"].data) == 2 * 4
    assert [list(line.y) for line in drawn["learning_rate"].data] == [[0.1, 0.2]] * 2


def test_pictures_of_attention(
    drawn: dict[str, go.Figure], tables: dict[str, pd.DataFrame]
) -> None:
    figure = drawn["attention_random"]
    heats, dots = traces(figure, "heatmap"), traces(figure, "scatter")
    assert len(heats) == len(dots) == 2 * (1 + 3)
    needed = np.fliplr(np.eye(4))
    for heat, dot in zip(heats[4:], dots[4:], strict=True):  # layer 1 of the solver
        assert np.array(heat.z) == pytest.approx(needed, abs=1e-6)
        assert all(needed[row, column] for row, column in zip(dot.y, dot.x, strict=True))
        assert len(dot.x) == 4
    means = tables["patterns"][tables["patterns"]["string"] == EVERYTHING]
    by_seed = traces(drawn["attention_seeds"], "heatmap")
    assert len(by_seed) == 2 * 2 * 2
    second = means.query("run == 'ri_random' and seed == 4 and layer == 0")["weight"]
    assert np.array(by_seed[1].z).flatten() == pytest.approx(second.to_numpy())


def test_dots_stand_on_the_answer_and_crosses_on_the_nearest(drawn: dict[str, go.Figure]) -> None:
    figure = drawn["similarity"]
    strings = [note.text.partition("<br>")[0] for note in figure.layout.annotations]
    marks, cosines = traces(figure, "scatter"), traces(figure, "heatmap")
    dots, crosses = marks[::2], marks[1::2]
    assert len(set(strings)) == len(dots) == len(crosses) == 2 * 3
    for dot, cross, cosine, string in zip(dots, crosses, cosines, strings, strict=True):
        answer = [(int(symbol) + 1) % 3 for symbol in reversed(string)]
        assert dict(zip(dot.y, dot.x, strict=True)) == dict(enumerate(answer))
        nearest = np.array(cosine.z).argmax(1)
        assert dict(zip(cross.y, cross.x, strict=True)) == dict(enumerate(nearest))


def test_bars_and_cells_are_means_over_seeds(
    drawn: dict[str, go.Figure], tables: dict[str, pd.DataFrame]
) -> None:
    bars: dict[str, float] = {}
    for trace in drawn["ablations"].data:
        if trace.xaxis == "x":  # the first run
            bars |= dict(zip(trace.y, trace.x, strict=True))
    ablated = tables["ablations"].query("run == 'ri_random' and method != 'restored'")
    assert len(bars) == 1 + 4 + 4 + 2
    zeroed = ablated.query("component == 'W_O' and layer == '1'")
    control = ablated[ablated["component"] == "random, as many as W_out"]
    assert (len(zeroed), len(control)) == (2, 2 * 5)
    assert bars["layer 1 W_O"] == pytest.approx(zeroed["accuracy"].mean())
    assert bars["random, as many as W_out"] == pytest.approx(control["accuracy"].mean())
    cells = tables["confusion"].query("run == 'ri_random' and case == 'prediction'")
    mean = cells.groupby(["target", "read"])["share"].mean().to_numpy()
    assert np.array(drawn["confusion"].data[0].z).flatten() == pytest.approx(mean)
    lines = [shape.x0 for shape in drawn["ablations"].layout.shapes]
    due = [task.part(seen(split)[1], "holdout")["targets"] for split in reversed(SPLITS)]
    share = [symbols.flatten().bincount().max().item() / symbols.numel() for symbols in due]
    assert lines == pytest.approx(share)
