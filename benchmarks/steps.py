"""Training steps in a second of processor time, for comparing two versions of the project.

    PYTHONPATH=src python benchmarks/steps.py list_copy_100_2l:free_V_free_O linear_regression_h2

Run it in both versions in turn, more than once: machines differ, and so do hours. It takes each run
(and variant) at the paper scale, compiled if the run is compiled. A step draws the batch, computes
loss and gradient, and updates the weights.
"""

import statistics
import sys
import time

import torch

from toycircuits.core.config import find_run, read_params
from toycircuits.core.gradients import compiled, gradients_of
from toycircuits.core.optimizer import Optimizer
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.train_run import read_settings

ROUNDS, SECONDS = 5, 0.6  # the median is over the rounds, of so much processor time each


def steps_per_second(name: str, variant: str) -> float:
    """The median over the rounds, after the first steps, which compile."""
    run = find_run(read_params() | {"scale": "paper"}, name)
    settings, task = read_settings(run), load_task(run.entry.slice)
    data, train = settings.data, settings.train
    model_settings = settings.models[variant or next(iter(settings.models))]
    build = load_model(run.entry.slice).build
    model = build(model_settings, data, torch.Generator().manual_seed(0))
    tensors = train.select(task.generate(data, torch.Generator().manual_seed(data.seed)))
    stream = task.batches(tensors, data, train, torch.Generator().manual_seed(0))
    optimizer = Optimizer(model, train)
    differentiate = gradients_of(task.loss, optimizer.parameters)
    if train.compile:
        differentiate = compiled(differentiate, torch.device("cpu"))

    def step() -> None:
        _, gradients = differentiate(model, stream.next())
        for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    for _ in range(5):
        step()
    rates = []
    for _ in range(ROUNDS):
        start, n = time.process_time(), 0
        while time.process_time() - start < SECONDS:
            step()
            n += 1
        rates.append(n / (time.process_time() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for argument in sys.argv[1:]:
        name, _, variant = argument.partition(":")
        print(f"{argument:45} {steps_per_second(name, variant):8.1f} steps/s", flush=True)
