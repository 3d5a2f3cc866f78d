"""The first numbers that the original study of modular subtraction printed."""

import pytest
import torch
from torch import Tensor

from toycircuits.experiments.modular_arithmetic import model, task
from toycircuits.experiments.modular_arithmetic.metrics.training_start import training_start

TRAIN = [(21, 31), (30, 98), (47, 10), (86, 21), (99, 83)]
TEST = [(43, 40), (31, 42), (39, 63), (35, 61), (112, 102)]


def published_data(operation: str = "subtract") -> tuple[task.DataSettings, dict[str, Tensor]]:
    values = {"modulus": 113, "operation": operation, "train_fraction": 0.3, "seed": 598}
    settings = task.DataSettings.parse(values, "data")
    return settings, task.generate(settings, torch.Generator().manual_seed(settings.seed))


@pytest.mark.parametrize(
    ("operation", "name", "pairs", "labels"),
    [
        ("subtract", "train", TRAIN, [103, 45, 37, 65, 16]),
        ("subtract", "test", TEST, [3, 102, 89, 87, 10]),
        # The same pairs added, by hand: 21 + 31, 30 + 98 - 113, 47 + 10, 86 + 21, 99 + 83 - 113.
        ("add", "train", TRAIN, [52, 15, 57, 107, 69]),
        ("add", "test", TEST, [83, 73, 102, 96, 101]),
    ],
)
def test_first_rows_of_the_split(
    operation: str, name: str, pairs: list[tuple[int, int]], labels: list[int]
) -> None:
    _, data = published_data(operation)
    rows = task.split(data, name)
    assert rows["tokens"][:5].tolist() == [[a, b, 113] for a, b in pairs]
    assert rows["labels"][:5].tolist() == labels


def test_the_table_shows_the_published_start() -> None:
    settings, data = published_data()
    values = training_start(data, settings).groupby("item")["value"].agg(list)
    assert (values["training_pairs"], values["test_pairs"]) == ([3830], [8939])
    for name, pairs in (("training", TRAIN), ("test", TEST)):
        assert values[f"first_{name}_pairs"] == [n for pair in pairs for n in pair]
        assert values[f"first_{name}_labels"] == [(a - b) % 113 for a, b in pairs]


def test_sizes_of_the_split() -> None:
    _, data = published_data()
    assert (len(data["train"]), len(data["test"])) == (3830, 8939)
    assert torch.equal(torch.cat([data["train"], data["test"]]).sort()[0], torch.arange(113**2))


@pytest.mark.parametrize(
    ("name", "published"), [("train", 4.732243928736632), ("test", 4.7345742216589235)]
)
def test_initial_losses(name: str, published: float) -> None:
    settings, data = published_data()
    shape = {"n_layers": 1, "n_heads": 4, "d_model": 128, "d_head": 32, "d_mlp": 512}
    kind = {"act_fn": "relu", "normalization": None, "use_bias": False}
    model_settings = model.ModelSettings.parse(shape | kind, "model")
    network = model.build(model_settings, settings, torch.Generator().manual_seed(999))
    with torch.no_grad():
        loss = task.loss(network, task.split(data, name)).item()
    # Logits are float32, their rounding averaged over thousands of pairs: about 1e-9.
    assert loss == pytest.approx(published, abs=1e-8)
