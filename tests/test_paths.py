"""Names of models tell them apart within a run."""

from itertools import product

import pytest

from toycircuits.core.paths import model_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (("", 999, None), "seed999"),
        (("", 3, 3), "seed3"),
        (("", 3, 4), "seed3-batch4"),
        (("", 3, 0), "seed3-batch0"),
        (("frozen", 0, None), "frozen-seed0"),
        (("frozen", 1, 2), "frozen-seed1-batch2"),
    ],
)
def test_a_name_is_made_of_variant_and_seeds(model: tuple[str, int, int | None], name: str) -> None:
    assert model_name(*model) == name


def test_names_are_unique_in_a_run() -> None:
    models = list(product(["", "a", "b"], range(12), range(12)))
    assert len({model_name(*model) for model in models}) == len(models)
