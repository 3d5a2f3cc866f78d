"""All of params.yaml is checked before any work; what is wrong is named in one line."""

from pathlib import Path
from typing import Any

import pytest

from toycircuits.config import InputError, read_params
from toycircuits.validation import validate

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


def changed(path: str, value: Any) -> dict[str, Any]:
    params = read_params(PARAMS)
    *parents, last = path.split("/")
    place: Any = params
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return params


def test_the_projects_own_params_are_valid() -> None:
    validate(read_params(PARAMS))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("scale", "quik", "scale: found 'quik'; allowed: quick, paper"),
        ("runs", None, "runs: missing key"),
        ("experiments", {}, "experiments: found {}"),
        ("quick/modular_subtration", {}, "quick.modular_subtration: no such experiment"),
        ("paper/list_copy_10", None, "paper.list_copy_10: missing key"),
        ("paper/list_copy_10/render", None, "paper.list_copy_10.render: missing key"),
        ("quick/list_copy_10/tune", {}, "quick.list_copy_10.tune: unknown key"),
        ("quick/list_copy_10/train/lr", "fast", 'quick.list_copy_10.train.lr: found "fast"'),
        ("quick/modular_subtraction/data/modulus", 58, "data: modulus: found 58; allowed are odd"),
        ("paper/modular_subtraction/model/use_bias", True, "model.use_bias: found true"),
        ("paper/modular_subtraction/train/batch_size", 64, "train.batch_size: found 64"),
        ("runs/list_copy_10/slice", "modular_arithmetic", "runs.list_copy_10.slice: found"),
        ("runs/list_copy_10/experiment", "list_copy", "quick.list_copy: missing key"),
        ("runs/list_copy_10/model", {"d_head": 3}, "runs.list_copy_10.model"),
        ("runs/list_copy_10/variants", {"a/b": {}}, "'a/b': names are made of letters"),
        ("experiments/list_copy_10/slice", "list_coppy", "no slice 'list_coppy'"),
    ],
)
def test_a_slip_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(changed(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
