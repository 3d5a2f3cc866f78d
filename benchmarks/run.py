"""Time our training step against the plain one of `plain.py`, in one process, interleaved.

    python benchmarks/run.py            (two to three minutes; nothing else should run beside it)

Prints a table of ratios, and how far each step is from what this machine can do at all: the time
that its matrix products would take at the measured rate, and its memory traffic at the measured
bandwidth. What is left is the cost of calling many small operations.
"""

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from plain import PlainRegression, PlainTransformer, loader
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from toycircuits.core.config import find_run, read_params
from toycircuits.core.device import prepare
from toycircuits.core.gradients import compiled, gradients_of
from toycircuits.core.optimizer import Optimizer
from toycircuits.experiments.linear_regression import model as lr_model
from toycircuits.experiments.linear_regression import task as lr_task
from toycircuits.experiments.list_copy import model as copy_model
from toycircuits.experiments.list_copy import task as copy_task
from toycircuits.experiments.modular_arithmetic import model as modular_model
from toycircuits.experiments.modular_arithmetic import task as modular_task
from toycircuits.experiments.reverse_increment import model as reverse_model
from toycircuits.experiments.reverse_increment import task as reverse_task

ROOT = Path(__file__).resolve().parents[1]
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One model to train.

    Attributes:
        run, variant: of params.yaml, at its paper scale.
        task, model: modules of the slice.
        plain_loss: loss of the plain model on a batch, or None where there is no plain one.
        stands_for: models of the same size and length, of all runs, with one seed each.
        published_steps: steps that the original study took, where it stopped before its limit.
    """

    run: str
    variant: str
    task: Any
    model: Any
    plain_loss: Callable[[Any, dict[str, Tensor]], Tensor] | None
    stands_for: int = 1
    published_steps: int | None = None


def copy_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of list copying: the positions that its layout scores."""
    logits = model(batch["inputs"])[:, list(copy_task.scored_positions(batch["targets"]))]
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def reverse_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of reverse-and-increment: the answer's positions scored."""
    logits = model(batch["inputs"])[:, batch["inputs"].shape[1] // 2 :]
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def modular_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of modular arithmetic: the last position scored, its log-softmax in float64."""
    log_probs = model(batch["tokens"])[:, -1].to(torch.float64).log_softmax(-1)
    return -log_probs.gather(1, batch["labels"].unsqueeze(1)).mean()


def regression_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the prediction."""
    return F.mse_loss(model(batch["z"], batch["z_q"]), batch["y_q"].unsqueeze(1))


COPY = (copy_task, copy_model, copy_loss)
MODULAR = (modular_task, modular_model, modular_loss)
REVERSE = (reverse_task, reverse_model, reverse_loss)
REGRESSION = (lr_task, lr_model, regression_loss)
CASES = [
    Case("modular_subtraction", "", *MODULAR),
    Case("list_copy_10", "", *COPY),
    Case("list_copy_100", "", *COPY, stands_for=2),
    Case("list_copy_100_2l", "free_V_free_O", *COPY, stands_for=8),
    Case("list_copy_100_2l_ln_bias", "free_V_free_O", *COPY, stands_for=8),
    Case("list_copy_100_3l", "frozen_V_frozen_O", *COPY, stands_for=2, published_steps=3300),
    Case("list_copy_100_3l_ln_bias", "free_V_free_O", *COPY, stands_for=14, published_steps=200),
    Case("reverse_increment_random", "", *REVERSE, stands_for=2),
    Case("linear_regression_h1", "", *REGRESSION),
    Case("linear_regression_h2", "", *REGRESSION, stands_for=5),
    Case("linear_regression_h4", "", *REGRESSION),
    Case("linear_regression_h8", "", *REGRESSION),
    Case("linear_regression_stack", "untied", lr_task, lr_model, None, stands_for=3),
]


def regression_batches(settings: Any, size: int) -> Iterator[dict[str, Tensor]]:
    """Fresh sequences, drawn one batch at a time."""
    d, n = settings.d, settings.n_examples
    while True:
        x, x_q, beta = torch.randn(size, n, d), torch.randn(size, d), torch.randn(size, d)
        y = torch.einsum("b l d, b d -> b l", x, beta)
        y = y + settings.noise_variance**0.5 * torch.randn(size, n)
        z_q = torch.cat([x_q, torch.zeros(size, 1)], 1)
        yield {"z": torch.cat([x, y.unsqueeze(-1)], -1), "z_q": z_q, "y_q": (x_q * beta).sum(-1)}


def plain_batches(
    data: Mapping[str, Tensor], batch: dict[str, Tensor], train: Any
) -> Iterator[dict[str, Tensor]]:
    """The full batch again and again, or shuffled ones from a `DataLoader`."""
    if train.batch_size is None:
        return itertools.repeat(batch)
    rows = {name: data[name] for name in batch}
    if "train" in data:
        rows = {name: column[data["train"]] for name, column in rows.items()}
    packed = loader(TensorDataset(*rows.values()), train.batch_size, train.drop_last)
    return (dict(zip(rows, columns, strict=True)) for columns in packed)


@dataclass(frozen=True)
class Steps:
    """What is timed.

    Attributes:
        ours, plain: the steps; both start at the same weights, and their losses on the same batch
            have been compared.
        gradient: our loss with its gradient, not compiled.
        per_epoch: batches an epoch; the last may be a smaller one, for which we compile anew.
        per_run: steps of a run.
    """

    ours: Step
    plain: Step | None
    gradient: Step
    per_epoch: int
    per_run: int


def steps_of(case: Case, params: dict[str, Any]) -> Steps:
    """The steps of one case."""
    run = find_run(params, case.run)
    data_settings = run.section("data", case.task.DataSettings)
    train = run.section("train", case.task.TrainSettings)
    shape = run.section("model", case.model.ModelSettings, case.variant)
    generator = torch.Generator().manual_seed(0)
    data = train.select(case.task.generate(data_settings, generator))
    model = case.model.build(shape, data_settings, generator)
    stream = case.task.batches(data, data_settings, train, generator)
    batch = stream.next()
    optimizer = Optimizer(model, train)
    plain_gradients = differentiate = gradients_of(case.task.loss, optimizer.parameters)
    if train.compile:
        differentiate = compiled(differentiate, torch.device("cpu"))
    per_unit = stream.per_epoch if train.unit == "epoch" else 1
    per_run = case.published_steps or train.length * per_unit

    def step() -> None:
        _, gradients = differentiate(model, stream.next())
        for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
            parameter.grad = gradient
        if train.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(optimizer.parameters, train.clip_grad_norm)
        optimizer.step()

    def gradient() -> None:
        plain_gradients(model, batch)

    if case.plain_loss is None:
        return Steps(step, None, gradient, stream.per_epoch, per_run)
    plain_loss = case.plain_loss
    if case.task is lr_task:
        plain: Any = PlainRegression(shape.n_heads, data_settings.d + 1)
        plain.load_weights(model.state_dict())
        given = regression_batches(data_settings, train.batch_size)
    else:
        plain = PlainTransformer(model.settings)
        plain.load_state_dict(model.state_dict())
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(model.get_parameter(name).requires_grad)
        given = plain_batches(data, batch, train)
    ours, theirs = case.task.loss(model, batch).item(), plain_loss(plain, batch).item()
    if not math.isclose(ours, theirs, rel_tol=1e-5):
        raise SystemExit(f"{case.run}: our loss is {ours}, the plain one {theirs}")
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[train.optimizer]
    trainable = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    plain_optimizer = kind(trainable, lr=train.lr, weight_decay=train.weight_decay)
    test = case.task.split(data, "test") if case.task is modular_task else None

    def plain_step() -> None:
        loss = plain_loss(plain, next(given))
        plain_optimizer.zero_grad()
        loss.backward()
        if train.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trainable, train.clip_grad_norm)
        plain_optimizer.step()
        loss.item()
        if test is not None:  # the original logs it at every epoch, the project at every hundredth
            with torch.no_grad():
                plain_loss(plain, test).item()

    return Steps(step, plain_step, gradient, stream.per_epoch, per_run)


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, views and matrix products left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not any(name in str(func) for name in ("mm", "empty")):
            leaves = [*torch.utils._pytree.tree_leaves((args, kwargs, out))]
            self.bytes += sum(x.numel() * x.element_size() for x in leaves if torch.is_tensor(x))
        return out


def timed(step: Step, n: int) -> float:
    """Seconds a step, the mean of `n`."""
    start = time.perf_counter()
    for _ in range(n):
        step()
    return (time.perf_counter() - start) / n


def machine_limits() -> tuple[float, float]:
    """Best rates of one thread: matrix products (FLOP/s, 1024^3) and copying (bytes/s moved)."""
    a = torch.randn(1024, 1024)
    product = min(timed(lambda: torch.mm(a, a), 3) for _ in range(7))
    big, target = torch.randn(32 * 2**20), torch.empty(32 * 2**20)
    copy = min(timed(lambda: target.copy_(big), 1) for _ in range(7))
    return 2 * 1024**3 / product, 2 * big.numel() * 4 / copy


def measure(case: Case, params: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times of both steps, taken in turn, and what ours asks of the machine."""
    steps = steps_of(case, params)
    first = timed(steps.ours, steps.per_epoch) * steps.per_epoch  # compiles, where that is set
    pair = [step for step in (steps.ours, steps.plain) if step is not None]
    counts = [max(1, round(0.5 / timed(one, 5))) for one in pair]
    times = [[timed(one, n) for one, n in zip(pair, counts, strict=True)] for _ in range(rounds)]
    ours, *plain = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(both[1] / both[0] for both in times if plain) or [math.nan]
    with FlopCounterMode(display=False) as flops:
        steps.gradient()
    with Traffic() as traffic:
        steps.gradient()
    return {
        **{"run": f"{case.run} {case.variant}".strip(), "models": case.stands_for, "ours_s": ours},
        "plain_s": plain[0] if plain else math.nan,
        **{"ratio": statistics.median(ratios), "ratio_low": ratios[0], "ratio_high": ratios[-1]},
        **{
            "steps": steps.per_run,
            "minutes": case.stands_for * (first + steps.per_run * ours) / 60,
        },
        **{"flop": flops.get_total_flops(), "bytes": traffic.bytes},
    }


def main(
    rounds: Annotated[int, typer.Option(help="times that each pair is timed")] = 7,
    only: Annotated[str, typer.Option(help="runs whose names begin so")] = "",
) -> None:
    """Print the table."""
    prepare("cpu")
    params = read_params(ROOT / "params.yaml") | {"scale": "paper"}
    rate, bandwidth = machine_limits()
    cases = [case for case in CASES if case.run.startswith(only)]
    table = pd.DataFrame([measure(case, params, rounds) for case in cases])
    table["matmul"] = table["flop"] / rate / table["ours_s"]
    table["memory"] = table["bytes"] / bandwidth / table["ours_s"]
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; best rates measured:")
    print(f"{rate / 1e9:.0f} GFLOP/s in matrix products, {bandwidth / 1e9:.1f} GB/s copying\n")
    names = ["run", "plain, steps/s", "ours, steps/s", "ratio (range)", "products", "memory"]
    names += ["models", "steps each", "minutes"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in table.to_dict("records"):
        ratio = f"{row['ratio']:.1f} ({row['ratio_low']:.1f} to {row['ratio_high']:.1f})"
        cells = [row["run"], f"{1 / row['plain_s']:.4g}", f"{1 / row['ours_s']:.4g}", ratio]
        cells += [f"{row['matmul']:.0%}", f"{row['memory']:.0%}"]
        cells += [f"{row['models']}", f"{row['steps']:,}", f"{row['minutes']:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    total = table["minutes"].sum()
    print(
        f"\nAll models once, one after the other: {total:.0f} min; two at a time: {total / 2:.0f}"
    )


if __name__ == "__main__":
    typer.run(main)
