"""Streams of batches: orders, epochs, and continuing from a state."""

import pytest
import torch
from made_trainings import some_data
from torch import Tensor

from toycircuits.core.batches import Batch, BatchStream, full_batch, shuffled_batches
from toycircuits.core.config import InputError


def draw_three(generator: torch.Generator) -> list[Batch]:
    return [{"x": row} for row in torch.rand(3, 2, generator=generator)]


def new_stream(redraw: bool, seed: int = 0) -> BatchStream:
    return BatchStream(draw_three, torch.Generator().manual_seed(seed), 3, redraw)


def take(stream: BatchStream, n: int) -> list[float]:
    return [stream.next()["x"].sum().item() for _ in range(n)]


@pytest.mark.parametrize("redraw", [True, False])
@pytest.mark.parametrize("done", range(8))
def test_a_restored_stream_goes_on_where_it_was(done: int, redraw: bool) -> None:
    stream = new_stream(redraw)
    take(stream, done)
    state = stream.state()
    expected = take(stream, 8)
    other = new_stream(redraw, seed=1)
    take(other, 2)
    other.restore(*state)
    assert take(other, 8) == expected
    again = new_stream(redraw, seed=1)
    again.restore(*state)
    assert again.state()[1] == state[1]
    assert torch.equal(again.state()[0], state[0])


def test_a_stream_draws_anew_or_replays() -> None:
    drawn, replayed = take(new_stream(redraw=True), 9), take(new_stream(redraw=False), 9)
    assert len(set(drawn)) == 9
    assert replayed == drawn[:3] * 3


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_an_epoch_has_every_row_once_but_those_dropped(drop_last: bool, sizes: list[int]) -> None:
    data = some_data()
    stream = shuffled_batches(data, 4, torch.Generator(), drop_last)
    batches = [stream.next() for _ in sizes]
    assert stream.per_epoch == len(sizes)
    assert [len(batch["x"]) for batch in batches] == sizes
    assert len(stream.next()["x"]) == 4  # the next epoch's first
    rows = torch.cat([batch["y"] for batch in batches])
    assert len(set(rows.tolist()) & set(data["y"].tolist())) == len(rows)
    target = torch.tensor([1.0, -2.0, 3.0])
    for batch in batches:  # columns stay together; a sum of three float32 products, reordered
        torch.testing.assert_close(batch["x"] @ target + 0.5, batch["y"])


@pytest.mark.parametrize("reshuffle", [True, False])
def test_the_order_is_new_each_epoch_or_not(reshuffle: bool) -> None:
    stream = shuffled_batches(some_data(), 4, torch.Generator(), False, reshuffle)
    first, second = (torch.cat([stream.next()["y"] for _ in range(3)]) for _ in range(2))
    assert torch.equal(first, second) is not reshuffle
    assert not torch.equal(first, some_data()["y"])


def test_a_batch_larger_than_the_data_is_the_data_or_an_error() -> None:
    stream = shuffled_batches(some_data(), 11, torch.Generator(), drop_last=False)
    assert [len(stream.next()["x"]) for _ in range(2)] == [10, 10]
    with pytest.raises(InputError, match=r"^train\.batch_size: found 11; allowed is at most 10$"):
        shuffled_batches(some_data(), 11, torch.Generator(), drop_last=True)


def test_the_full_batch_is_given_at_every_step() -> None:
    data = some_data()
    stream = full_batch(data)
    assert stream.per_epoch == 1
    assert all(stream.next() is data for _ in range(3))


# --- resuming ---


def test_others_settings_of_torch_reach_no_batch() -> None:
    def drawn() -> list[Tensor]:
        generator = torch.Generator("cpu").manual_seed(3)
        streams = [full_batch(data), shuffled_batches(data, 4, generator, drop_last=False)]
        return [stream.next()[name] for stream in streams for _ in range(5) for name in data]

    data, before = some_data(), torch.get_default_dtype()
    expected = drawn()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.no_grad():
            assert all(map(torch.equal, drawn(), expected))
    finally:
        torch.set_default_dtype(before)
