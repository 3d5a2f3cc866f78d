"""What others set in torch, for code of their own, reaches no data, initial weights or batches."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from project import ROOT
from torch import Tensor

from toycircuits.core.config import find_run, read_params
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.train_run import read_settings

BATCHES = 3
# A run of each slice, and of each way to draw batches. The quick scale, so that it takes no time.
RUNS = (
    *("modular_subtraction", "reverse_increment_random", "linear_regression_h2"),
    *("linear_regression_stack", "list_copy_10", "list_copy_100", "order_by_scale_2l"),
    *("order_by_scale_2l_fresh_train", "order_by_scale_2l_fresh_all"),
)


def made(name: str) -> dict[str, Tensor]:
    """Data, initial weights and first batches of the first model of a run, by name."""
    run = find_run(read_params(ROOT / "params.yaml") | {"scale": "quick"}, name)
    task, architecture = load_task(run.entry.slice), load_model(run.entry.slice)
    settings = read_settings(run)
    data = task.generate(settings.data, torch.Generator().manual_seed(settings.data.seed))
    weight_seed, batch_seed = settings.train.seed_pairs[0]
    weights = torch.Generator().manual_seed(weight_seed)
    model = architecture.build(settings.models[run.variants[0]], settings.data, weights)
    order = weights if batch_seed is None else torch.Generator().manual_seed(batch_seed)
    stream = task.batches(settings.train.select(data), settings.data, settings.train, order)
    drawn = [stream.next() for _ in range(BATCHES)]
    return {
        **{f"data/{key}": value for key, value in data.items()},
        **{f"weights/{key}": value for key, value in model.state_dict().items()},
        **{f"{i}/{key}": value for i, batch in enumerate(drawn) for key, value in batch.items()},
    }


@contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def global_seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        yield


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "global seed": global_seed,
}


def differences(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not of the same type, device and bytes in both."""
    return [
        name
        for name in {**a, **b}
        if name not in a
        or name not in b
        or (a[name].dtype, a[name].device) != (b[name].dtype, b[name].device)
        or not torch.equal(a[name], b[name])
    ]


@pytest.mark.parametrize("name", RUNS)
def test_ambient_state_reaches_nothing(name: str) -> None:
    usual = made(name)
    for what, context in AMBIENT.items():
        with context():
            before = torch.get_rng_state()
            assert differences(usual, made(name)) == [], what
            assert torch.equal(torch.get_rng_state(), before), what


def test_every_slice_is_tested() -> None:
    slices = {entry["slice"] for entry in read_params(ROOT / "params.yaml")["runs"].values()}
    assert {
        find_run(read_params(ROOT / "params.yaml"), name).entry.slice for name in RUNS
    } == slices


def test_a_difference_is_seen() -> None:
    """Each ambient state above changes what code that ignores it makes."""
    zeros = {"x": torch.zeros(2)}
    for what in ("default dtype", "default device"):
        with AMBIENT[what]():
            assert differences(zeros, {"x": torch.zeros(2)}) == ["x"], what
    assert differences(zeros, {}) == ["x"]
    assert differences(zeros, {"x": torch.ones(2)}) == ["x"]
