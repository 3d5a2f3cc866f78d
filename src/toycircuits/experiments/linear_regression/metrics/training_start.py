"""What a training is given: the first query and the first losses, which were published."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from toycircuits.core.generators import seeded
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

    The original study seeds once. The first batch that it draws is only printed. All runs follow in
    the same stream of numbers, each with its weights and then its batches.

    One row a number. `item`: first_query, the first x_q of the stream; loss, the losses of the
    first two steps.
    """
    seed = train.weight_seeds[0]
    query = sample(train.batch_size, task, seeded(seed))["z_q"][0, : task.d]
    generator = train.weight_generator(seed)
    network = build(model.settings, task, generator)
    first = loss(network, sample(train.batch_size, task, generator))
    _update(list(network.parameters()), first, train)
    second = loss(network, sample(train.batch_size, task, generator))
    losses = [first.item(), second.item()]
    items = {"first_query": query.tolist(), "loss": losses}
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, values in items.items()
        for index, value in enumerate(values)
    )


@torch.no_grad()
def _update(parameters: list[Tensor], value: Tensor, train: TrainSettings) -> None:
    """Change `parameters` by the first step of PyTorch's optimizer along the gradient of `value`.

    This calls the function behind the optimizer's class. The class loads torch's compiler first,
    which takes three seconds.
    """
    {"Adam": adam, "AdamW": adamw}[train.optimizer](
        parameters,
        list(torch.autograd.grad(value, parameters)),
        [torch.zeros_like(parameter) for parameter in parameters],  # means of gradients
        [torch.zeros_like(parameter) for parameter in parameters],  # and of their squares
        [],
        [torch.zeros(()) for _ in parameters],  # steps done
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=train.lr,
        beta1=train.betas[0],
        beta2=train.betas[1],
        eps=1e-8,  # PyTorch's default
        weight_decay=train.weight_decay,
    )
