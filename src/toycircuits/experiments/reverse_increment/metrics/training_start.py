"""The strings of a run's split, to compare with what the original study says about them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from toycircuits.experiments.reverse_increment.task import DataSettings


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: Any = None, model: Any = None
) -> pd.DataFrame:
    """The strings of a training, one row per number; `train` and `model` are not used.

    `item` is one of: strings, training_strings, held_out_strings (numbers of them), and held_out_x0
    and so on (the symbols that occur at this place of held-out strings).

    >>> import torch
    >>> data = {"inputs": torch.tensor([[2, 0, 0, 1], [2, 0, 1, 0], [2, 1, 0, 1], [2, 1, 1, 0]])}
    >>> data |= {"train": torch.tensor([0, 1]), "holdout": torch.tensor([2, 3])}
    >>> task = DataSettings(n_symbols=2, length=2, n_train=2, n_sampled=1, seed=0)
    >>> table = training_start(data, task)
    >>> table["item"].tolist()[2:], table["value"].tolist()
    (['held_out_strings', 'held_out_x0', 'held_out_x1', 'held_out_x1'], [4, 2, 2, 1, 0, 1])
    """
    held_out = data["inputs"][data["holdout"], 1 : task.length + 1]
    items = {
        "strings": [len(data["inputs"])],
        "training_strings": [len(data["train"])],
        "held_out_strings": [len(held_out)],
    }
    for place, symbols in enumerate(held_out.unbind(1)):
        items[f"held_out_x{place}"] = symbols.unique().tolist()
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, values in items.items()
        for index, value in enumerate(values)
    )
