"""Reversed strings: both splits, the task and the model."""

import math
from typing import Any

import pytest
import torch
from made_strings import (
    ABLATE,
    DATA,
    MODEL,
    ROOT,
    SPLITS,
    TRAIN,
    Data,
    make_data,
    make_model,
    scrambled,
    seen,
    train_settings,
)

from toycircuits.core.config import InputError, Settings, find_run, read_params
from toycircuits.experiments.reverse_increment import ablations, model, task
from toycircuits.experiments.reverse_increment.figures.draw import RenderSettings
from toycircuits.experiments.reverse_increment.metrics import measure as metrics


@pytest.fixture(scope="module")
def paper() -> Data:
    return make_data(n_symbols=4, length=8, n_train=60_000, n_sampled=5000)


@pytest.mark.parametrize("split", SPLITS)
def test_params_say_what_was_published(split: str) -> None:
    params = read_params(ROOT / "params.yaml") | {"scale": "paper"}
    run = find_run(params, f"reverse_increment_{split}")
    data = run.section("data", task.DataSettings)
    assert (data.n_symbols, data.length, data.n_train) == (4, 8, 60_000)
    assert run.section("model", model.ModelSettings).model_dump() == MODEL
    train = run.section("train", task.TrainSettings)
    free = {"weight_seeds", "batch_seeds", "checkpoint_every", "compile"}
    published = train_settings(split=split).model_dump(exclude=free)
    assert train.model_dump(exclude=free) == published
    assert len(train.weight_seeds) == 10


def test_every_string_and_its_answer(paper: Data) -> None:
    _, data = paper
    inputs, targets = data["inputs"], data["targets"]
    assert (inputs.shape, targets.shape) == ((65536, 16), (65536, 8))
    assert (inputs[:, 0] == 4).all()
    place_values = 4 ** torch.arange(7, -1, -1)
    assert torch.equal((inputs[:, 1:9] * place_values).sum(1), torch.arange(65536))
    for i in range(8):
        assert torch.equal(targets[:, i], (inputs[:, 8 - i] + 1) % 4)  # x_j stands at 1 + j
    assert torch.equal(inputs[:, 9:], targets[:, :-1])


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_disjoint_and_complete(paper: Data, split: str) -> None:
    _, data = paper
    train, holdout, sampled = (data[f"{split}_{name}"] for name in ("train", "holdout", "sampled"))
    assert (len(train), len(holdout), len(sampled)) == (60_000, 5536, 5000)
    assert torch.equal(torch.cat([train, holdout]).sort().values, torch.arange(65536))
    assert len(sampled.unique()) == 5000
    assert torch.isin(sampled, train).all()
    # Neither the first of them nor all from one end: 5,000 even draws leave no quarter empty.
    assert torch.histc(sampled.float(), 4, 0, 65536).min() > 500


def test_only_the_sequential_holdout_starts_alike(paper: Data) -> None:
    _, data = paper
    x0, x1 = data["inputs"][data["sequential_holdout"], 1:3].T
    assert x0.unique().tolist() == [3]
    assert x1.unique().tolist() == [2, 3]
    pairs = data["inputs"][data["random_holdout"], 1:3].unique(dim=0)
    assert len(pairs) == 16


def test_training_start_shows_how_held_out_strings_start(paper: Data) -> None:
    settings, data = paper
    for split, starts in (("sequential", [[3], [2, 3]]), ("random", [[0, 1, 2, 3]] * 2)):
        selected = train_settings(split=split).select(data)
        table = metrics.training_start(selected, settings, None)
        start = table.groupby("item")["value"].agg(list)
        sizes = [start[f"{name}strings"] for name in ("", "training_", "held_out_")]
        assert sizes == [[65_536], [60_000], [5536]]
        assert [start["held_out_x0"], start["held_out_x1"]] == starts
        assert all(start[f"held_out_x{i}"] == [0, 1, 2, 3] for i in range(2, 8))


def test_splits_follow_the_seed() -> None:
    (_, data), (_, again), (_, other) = make_data(), make_data(), make_data(seed=1)
    assert all(torch.equal(data[name], again[name]) for name in data)
    assert not torch.equal(data["random_train"].sort()[0], other["random_train"].sort()[0])
    assert torch.equal(data["sequential_train"], other["sequential_train"])


@pytest.mark.parametrize("split", SPLITS)
def test_a_run_sees_its_own_split_alone(split: str) -> None:
    _, data = make_data()
    selected = train_settings(split=split).select(data)
    assert set(selected) == {"inputs", "targets", "train", "holdout", "sampled"}
    for name in ("train", "holdout", "sampled"):
        assert torch.equal(selected[name], data[f"{split}_{name}"])
        part = task.part(selected, name)
        assert torch.equal(part["inputs"], data["inputs"][data[f"{split}_{name}"]])
        assert torch.equal(part["targets"], data["targets"][data[f"{split}_{name}"]])


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (task.DataSettings, DATA | {"n_symbols": 1}, "key.n_symbols: found 1; input should be"),
        (task.DataSettings, DATA | {"length": 14}, "key: length: found 14; "),
        (task.DataSettings, DATA | {"n_train": 81}, "n_train: found 81; allowed is less than all"),
        (task.DataSettings, DATA | {"n_sampled": 61}, "n_sampled: found 61; allowed is at most n_"),
        (task.TrainSettings, TRAIN | {"split": "odd"}, 'key.split: found "odd"; input should be'),
        (task.TrainSettings, TRAIN | {"batch_size": None}, "key.batch_size: found null; input"),
        (task.TrainSettings, TRAIN | {"length": 5}, "schedule.warmup: found 5; allowed is less"),
        (model.ModelSettings, MODEL | {"d_mlp": None}, "key.d_mlp: found null; input should be"),
        (metrics.MeasureSettings, {"n_samples": 0}, "key.n_samples: found 0; input should be"),
        (ablations.AblateSettings, ABLATE | {"control_draws": 0}, "key.control_draws: found 0; in"),
        (RenderSettings, {"success_at_least": 99.0}, "key.success_at_least: found 99.0; "),
    ],
)
def test_bad_settings_are_named(cls: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        cls.parse(values, "key")
    assert message in str(caught.value)
    assert str(caught.value).startswith("key")
    assert "\n" not in str(caught.value)


def test_the_last_partial_batch_is_kept(paper: Data) -> None:
    settings, data = paper
    train = train_settings()
    selected = train.select(data)
    stream = task.batches(selected, settings, train, torch.Generator().manual_seed(0))
    assert stream.per_epoch == 235
    epochs = [[stream.next() for _ in range(235)] for _ in range(2)]
    assert [len(batch["inputs"]) for batch in epochs[0]] == [256] * 234 + [96]
    first, second = (torch.cat([batch["inputs"] for batch in epoch]) for epoch in epochs)
    assert len(first.unique(dim=0)) == 60_000
    assert not torch.equal(first, second)
    last = epochs[0][-1]
    assert torch.equal(last["targets"], task.reverse_increment(last["inputs"][:, 1:9], 4))
    dropped = train_settings(drop_last=True)
    assert task.batches(selected, settings, dropped, torch.Generator()).per_epoch == 234


def test_learning_rates_are_the_published_ones() -> None:
    train = train_settings()
    assert train.schedule is not None
    factors = [train.schedule.factor(epoch, train.length) for epoch in range(40)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.3])
    cosine = [0.65 * (1 + math.cos(math.pi * (epoch - 5) / 35)) for epoch in range(5, 40)]
    assert factors[5:] == pytest.approx(cosine)


def test_loss_and_evaluation_read_the_answers_positions() -> None:
    settings, data = seen()
    made = scrambled(settings)
    with torch.no_grad():
        logged = task.evaluate(made, data)
        for name, where in (("sampled", "train"), ("holdout", "holdout")):
            part = task.part(data, name)
            logits = made(part["inputs"])[:, 4:8]  # of all eight positions
            right = (logits.argmax(-1) == part["targets"]).double()
            assert 0 < right.mean() < 1
            assert logged[f"{where}_accuracy"] == pytest.approx(right.mean().item())
            string = right.prod(1).mean().item()
            assert logged[f"{where}_accuracy_string"] == pytest.approx(string)
        p = logits.softmax(-1).gather(2, part["targets"].unsqueeze(2))
        assert logged["holdout_loss"] == pytest.approx(-p.log().mean().item())
        assert task.loss(made, part).item() == pytest.approx(logged["holdout_loss"])


# Model


def test_parameters_at_paper_settings() -> None:
    made = make_model(task.DataSettings.parse(DATA | {"n_symbols": 4, "length": 8}, "data"))
    shapes: dict[str, tuple[int, ...]] = {
        **{"embed.W_E": (5, 4), "pos_embed.W_pos": (16, 4), "ln_final.w": (4,), "ln_final.b": (4,)},
        **{"unembed.W_U": (4, 5), "unembed.b_U": (5,)},
    }
    for layer in range(2):
        block: dict[str, tuple[int, ...]] = {
            **{f"attn.W_{name}": (1, 4, 2) for name in "QKV"},
            **{f"attn.b_{name}": (1, 2) for name in "QKV"},
            **{"attn.W_O": (1, 2, 4), "attn.b_O": (4,)},
            **{f"ln{number}.{name}": (4,) for number in (1, 2) for name in "wb"},
            **{"mlp.W_in": (4, 16), "mlp.b_in": (16,), "mlp.W_out": (16, 4), "mlp.b_out": (4,)},
        }
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    assert {name: tuple(value.shape) for name, value in made.named_parameters()} == shapes
    assert sum(parameter.numel() for parameter in made.parameters()) == 529
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_biases_are_trained() -> None:
    settings, data = seen()
    made = make_model(settings)
    task.loss(made, task.part(data, "train")).backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if ".b" in name}
    assert len(gradients) == 2 * 8 + 2
    for name, gradient in gradients.items():
        if name.endswith("b_K"):  # it adds the same to all scores of a query, so nobody adds it
            assert gradient is None, name
        else:
            assert gradient is not None, name
            assert gradient.abs().max() > 1e-5, name


def test_the_mask_is_causal() -> None:
    settings, data = seen()
    made = scrambled(settings)
    inputs = data["inputs"][:5]
    with torch.no_grad():
        logits, (_, cache) = made(inputs), made.run_with_cache(inputs)
    for layer in range(2):
        seen_keys = (cache[f"blocks.{layer}.attn.hook_pattern"] > 0).all(0)[0]
        assert torch.equal(seen_keys, torch.ones(8, 8).tril().bool())
    for position in range(8):
        changed = inputs.clone()
        changed[:, position] = (changed[:, position] + 1) % 3
        with torch.no_grad():
            differs = (made(changed) != logits).any(2).any(0).tolist()
        assert differs == [other >= position for other in range(8)]
