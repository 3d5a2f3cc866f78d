"""What a training is given: the first query and the first losses, which were published."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from toycircuits.experiments.linear_regression.model import InContextAttention, build
from toycircuits.experiments.linear_regression.task import (
    DataSettings,
    TrainSettings,
    loss,
    sample,
)


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: TrainSettings, model: InContextAttention
) -> pd.DataFrame:
    """What training starts with for the first seed, whose start was published.

    The original study draws one batch only to print it. It then seeds the same generator again,
    and draws the weights and the batches.

    One row a number. `item`: first_query, the first x that is asked for; loss, the losses of the
    first two steps.
    """
    seed = train.weight_seeds[0]
    generator = torch.Generator().manual_seed(seed)
    query = sample(train.batch_size, task, generator)["z_q"][0, : task.d]
    generator.manual_seed(seed)
    network = build(model.settings, task, generator)
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[train.optimizer]
    options = {"betas": train.betas, "weight_decay": train.weight_decay}
    optimizer = kind(network.parameters(), lr=train.lr, fused=True, **options)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(network, sample(train.batch_size, task, generator))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    items = {"first_query": query.tolist(), "loss": losses}
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, values in items.items()
        for index, value in enumerate(values)
    )
