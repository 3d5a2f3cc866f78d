"""Generators that are far ahead in their stream."""

import pytest
import torch
from torch import Tensor

from toycircuits.core.generators import DEGREE, _lower_terms, seeded


def drawn(generator: torch.Generator) -> Tensor:
    """Normal and uniform numbers: more than the generator's state has words."""
    return torch.cat([torch.randn(1600, generator=generator), torch.rand(7, generator=generator)])


@pytest.mark.parametrize("seed", [0, 1024, 2**40 + 3])
@pytest.mark.parametrize("skip", [0, 1, 623, 624, 625, 1247, 1248, 19937, 20_560, 1_000_003])
def test_skipping_is_drawing(skip: int, seed: int) -> None:
    plain = torch.Generator().manual_seed(seed)
    torch.rand(skip, generator=plain)
    ahead = seeded(seed, skip)
    assert torch.equal(ahead.get_state(), plain.get_state())
    assert torch.equal(drawn(ahead), drawn(plain))
    assert not torch.equal(drawn(seeded(seed, skip + 1)), drawn(seeded(seed, skip)))


@pytest.mark.parametrize("skip", [1_248, 7_000_000, 30_000_000_000])
def test_skips_add_up(skip: int) -> None:
    """Far ahead, where drawing would take minutes, three steps further are three draws."""
    ahead = seeded(5, skip)
    torch.rand(3 * 624 + 5, generator=ahead)
    assert torch.equal(ahead.get_state(), seeded(5, skip + 3 * 624 + 5).get_state())


def test_the_recurrence_is_that_of_the_mersenne_twister() -> None:
    """Its polynomial has 135 terms (Matsumoto and Nishimura 1998, table II), one of them t^19937.

    The constant term is 1: otherwise the period could not be 2^19937 - 1.
    """
    terms = _lower_terms()
    assert len(terms) + 1 == 135
    assert 0 in terms
    assert max(terms) < DEGREE


def test_a_normal_number_is_one_draw() -> None:
    """Where they come in multiples of 16; torch draws the last 16 anew otherwise."""
    first = torch.randn(1648, generator=seeded(1))
    assert torch.equal(first[48:], torch.randn(1600, generator=seeded(1, skip=48)))


def test_others_settings_of_torch_change_nothing() -> None:
    expected = drawn(seeded(3, 100_000))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            generator = seeded(3, 100_000)
    finally:
        torch.set_default_dtype(before)
    assert generator.device.type == "cpu"
    assert torch.equal(drawn(generator), expected)
