"""What a training is given: the split, whose first pairs the original study printed."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from toycircuits.experiments.modular_arithmetic.task import DataSettings

FIRST_PAIRS = 5  # so many were published


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: Any = None, model: Any = None
) -> pd.DataFrame:
    """The first pairs of the split and its sizes; it is the same for every model.

    One row a number. `item`: first_training_pairs (a and b of each in turn), first_training_labels,
    training_pairs (how many), and likewise for test.

    >>> import torch
    >>> data = {"tokens": torch.tensor([[0, 0, 3], [0, 1, 3], [0, 2, 3]])}
    >>> data |= {"labels": torch.tensor([0, 2, 1])}
    >>> data |= {"train": torch.tensor([2]), "test": torch.tensor([1, 0])}
    >>> task = DataSettings(modulus=3, operation="subtract", train_fraction=0.4, seed=0)
    >>> training_start(data, task)["value"].tolist()
    [0, 2, 1, 1, 0, 1, 0, 0, 2, 0, 2]
    """
    items = {}
    for part, name in (("train", "training"), ("test", "test")):
        first = data[part][:FIRST_PAIRS]
        items[f"first_{name}_pairs"] = data["tokens"][first, :2].flatten().tolist()
        items[f"first_{name}_labels"] = data["labels"][first].tolist()
        items[f"{name}_pairs"] = [len(data[part])]
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, values in items.items()
        for index, value in enumerate(values)
    )
