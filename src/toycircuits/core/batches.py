"""Streams of batches whose state is small and exact, so that a training can be resumed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from toycircuits.core.config import InputError

Batch: TypeAlias = Mapping[str, Tensor]


class BatchStream:
    """An endless stream of batches, drawn in blocks: one epoch, or fresh data for many steps.

    Its state is small and exact: the generator's state before the present block, and the position
    in the block.

    Args:
        draw: makes the next block of batches from the generator.
        generator: consumed by `draw` alone.
        per_epoch: batches in an epoch (1 for the full batch and for fresh data).
        redraw: whether a new block follows a finished one; otherwise the first one repeats.
    """

    def __init__(
        self,
        draw: Callable[[torch.Generator], Sequence[Batch]],
        generator: torch.Generator,
        per_epoch: int = 1,
        redraw: bool = True,
    ) -> None:
        self.per_epoch = per_epoch
        self._draw, self._generator, self._redraw = draw, generator, redraw
        self._block: Sequence[Batch] = ()
        self._position = 0
        self._before = generator.get_state()

    def next(self) -> Batch:
        """The next batch."""
        if self._position == len(self._block):
            self._position = 0
            if self._redraw or not self._block:
                self._before = self._generator.get_state()
                self._block = self._draw(self._generator)
        batch = self._block[self._position]
        self._position += 1
        return batch

    def state(self) -> tuple[Tensor, int]:
        """The generator's state before the present block, and the position in the block."""
        return self._before, self._position

    def restore(self, before: Tensor, position: int) -> None:
        """Continue as a stream with this `state` would."""
        self._generator.set_state(before)
        self._before, self._position = before, position
        self._block = self._draw(self._generator) if position else ()


def full_batch(batch: Batch) -> BatchStream:
    """The stream that gives `batch` at every step."""
    return BatchStream(lambda _: [batch], torch.Generator("cpu"), redraw=False)


def shuffled_batches(
    data: Batch,
    batch_size: int,
    generator: torch.Generator,
    drop_last: bool,
    reshuffle: bool = True,
) -> BatchStream:
    """Batches of `batch_size` rows of `data` in random order; a new order each epoch, or not."""
    n_rows = len(next(iter(data.values())))
    per_epoch = n_rows // batch_size if drop_last else math.ceil(n_rows / batch_size)
    if per_epoch == 0:
        raise InputError(f"train.batch_size: found {batch_size}; allowed is at most {n_rows}")

    def draw(generator: torch.Generator) -> list[Batch]:
        order = torch.randperm(n_rows, generator=generator, dtype=torch.int64, device="cpu")
        parts = order.split(batch_size)[:per_epoch]
        return [{name: column[part] for name, column in data.items()} for part in parts]

    return BatchStream(draw, generator, per_epoch, reshuffle)
