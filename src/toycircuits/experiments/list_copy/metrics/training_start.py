"""What a training is given before it starts, to compare with what the original study printed."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from toycircuits.core.batches import BatchStream
from toycircuits.experiments.list_copy.task import LIST_LENGTH, DataSettings, TrainSettings, batches

FIRST_LISTS = 5  # the original study printed five
EPOCHS = 10  # enough to tell new orders (hardly a list stays unseen) from a repeated one


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: TrainSettings, model: Any = None
) -> pd.DataFrame:
    """The lists and batches of a training, one row per number; `model` is not used.

    `item` is one of: first_lists and first_held_out_lists (d1 and d2 of each in turn),
    training_lists, held_out_lists, batches_per_epoch, and unseen_lists (number of training lists
    that were in no batch after `index` epochs). Fresh draws have no epochs.
    """
    held_out = data.get("validation", torch.empty(0, dtype=torch.int64))
    n_lists = len(data["inputs"])
    rows = torch.arange(n_lists)
    order = torch.Generator().manual_seed(train.batch_seeds[0])
    stream = batches({"inputs": rows, "targets": rows}, task, train, order)
    items = {
        "first_lists": first_lists(data["inputs"]),
        "first_held_out_lists": first_lists(data["all_inputs"][held_out]),
        "training_lists": [n_lists],
        "held_out_lists": [len(held_out)],
    }
    if not train.is_fresh:
        items["batches_per_epoch"] = [stream.per_epoch]
        items["unseen_lists"] = unseen_rows(stream, n_lists)
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, values in items.items()
        for index, value in enumerate(values)
    )


def first_lists(inputs: Int[Tensor, "list pos"]) -> list[int]:
    """d1 and d2 of the first lists in turn."""
    numbers: list[int] = inputs[:FIRST_LISTS, :LIST_LENGTH].flatten().tolist()
    return numbers


def unseen_rows(stream: BatchStream, n_rows: int) -> list[int]:
    """Number of rows that were in no batch after 0, 1, ..., `EPOCHS` epochs.

    Args:
        stream: batches whose inputs are numbers of rows.
    """
    seen = torch.zeros(n_rows, dtype=torch.bool)
    unseen = [n_rows]
    for _ in range(EPOCHS):
        for _ in range(stream.per_epoch):
            seen[stream.next()["inputs"]] = True
        unseen.append(int((~seen).sum()))
    return unseen
