"""Models without memory."""

import pytest
import torch
from project import ROOT

from toycircuits.core.config import find_run, read_params
from toycircuits.core.outline import outline
from toycircuits.core.slices import load_model
from toycircuits.core.train_run import read_settings


@pytest.mark.parametrize(
    "name",
    ["modular_subtraction", "list_copy_10", "reverse_increment_random", "linear_regression_stack"],
)
def test_an_outline_has_the_parameters_of_the_model_and_no_memory(name: str) -> None:
    run = find_run(read_params(ROOT / "params.yaml"), name)
    settings, build = read_settings(run), load_model(run.entry.slice).build
    shape, generator = settings.models[run.variants[0]], torch.Generator("cpu")
    model = build(shape, settings.data, generator)
    with outline():
        outlined = build(shape, settings.data, generator)
    assert all(weight.is_meta for weight in outlined.parameters())
    described = [
        [(key, weight.shape, weight.dtype) for key, weight in one.named_parameters()]
        for one in (model, outlined)
    ]
    assert described[0] == described[1]
    assert not torch.empty(1).is_meta  # the context has an end
