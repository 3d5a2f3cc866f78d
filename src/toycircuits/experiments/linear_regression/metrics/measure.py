"""What the heads compute: their QK and OV circuits, and the estimators that these amount to.

Read from the weights, of head h: QK_h = W_Q W_K^T / sqrt(d + 1), with w_h the mean of its first d
diagonal entries, and OV_h = W_V W_O, with mu_h its last entry. If a QK is w_h times the identity
over the entries of x and an OV has its last entry alone, then one layer is the kernel estimator

    sum_h mu_h sum_i y_i softmax_i(w_h x_q.x_i),

and in the limit of small w, where the mu of the heads sum to zero, one step of gradient descent
on the centred examples with the rate sum_h w_h mu_h, at best 1 / (1 + (1 + delta^2) d / L).

With one head w cannot be small: the best one is near 1 / sqrt(d), the nearer the larger d.

Errors are mean squared errors of predictions of y_q on fresh sequences, in float64. Controls: the
network before training, and zero as prediction.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.optimizer import Optimizer
from toycircuits.experiments.linear_regression.model import InContextAttention, build
from toycircuits.experiments.linear_regression.task import (
    MAX_NUMBERS,
    DataSettings,
    TrainSettings,
    loss,
    sample,
)

Tables = dict[str, pd.DataFrame]
Row = dict[str, float]
Circuits = list[tuple[Tensor, Tensor]]  # of each layer: QK and OV, [head, d_model, d_model or 1]
DESCENT = "centred gradient descent, best rate"
LARGER = (1, 2, 4, 8)  # factors of d and L at which the best single head is looked for
SCALED_W = np.arange(0.5, 2, 0.05)  # w sqrt(d) that are tried; the best lies between two of them
PARTS = 16  # of the sequences, one left out at a time, for a standard error
CHUNK = 64  # sequences evaluated at once; has no influence on any result but by rounding


class LengthSettings(Settings):
    """Numbers of examples: first, first + step, ... up to last."""

    first: int = Field(ge=1, le=100_000)
    last: int = Field(ge=1, le=100_000)
    step: int = Field(ge=1, le=100_000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last: found {self.last}; allowed is at least first, {self.first}")
        return self

    @property
    def all(self) -> list[int]:
        """Every length.

        >>> LengthSettings(first=1, last=15, step=5).all
        [1, 6, 11]
        """
        return list(range(self.first, self.last + 1, self.step))


class MeasureSettings(Settings):
    """What to measure.

    Attributes:
        qk_steps: steps whose QK matrices are kept; each up to the end must have a checkpoint.
        live_ratio: a head is live if |w mu| is at least this share of the largest of its layer.
        lengths: numbers of examples at which errors are measured.
        sequences: sequences of the largest length on which they are measured, all lengths alike.
        seed: seed of these.
    """

    qk_steps: tuple[int, ...] = Field(min_length=1)
    live_ratio: float = Field(gt=0, le=1)
    lengths: LengthSettings
    sequences: int = Field(ge=2, le=10_000_000)
    seed: int = Field(ge=0, lt=2**63)

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for a step without checkpoint, or too many numbers at once."""
        every, length = train.checkpoint_every, train.length
        if missing := [step for step in self.qk_steps if step < length and step % every]:
            allowed = f"steps with a checkpoint: 0, {every}, {2 * every}, ... {length}"
            raise InputError(f"measure.qk_steps: found {missing[0]}; allowed are {allowed}")
        if data.numbers(self.sequences, self.lengths.last) > MAX_NUMBERS:
            allowed = f"at most {MAX_NUMBERS // data.numbers(1, self.lengths.last)} of this length"
            raise InputError(f"measure.sequences: found {self.sequences}; allowed are {allowed}")


# Circuits


def circuits(model: InContextAttention) -> Circuits:
    """QK and OV of every head in float64; those of a stack's last layer with its read-out."""
    with torch.no_grad():
        found = [(layer.qk().double(), layer.ov().double()) for layer in model.layers]
        if model.W_read is not None:
            qk, ov = found[-1]
            found[-1] = qk, ov @ model.W_read.double()
    return found


def weights_of(layer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The w and mu [head] of a layer: mean x-diagonal of its QK, last entry of its OV.

    >>> qk = torch.diag(torch.tensor([0.5, 0.3, 7.0])).unsqueeze(0)
    >>> w, mu = weights_of((qk, torch.tensor([[[9.0], [9.0], [2.0]]])))
    >>> round(w.item(), 6), mu.item()
    (0.4, 2.0)
    """
    qk, ov = layer
    return qk.diagonal(dim1=1, dim2=2)[:, :-1].mean(1), ov[:, -1, -1]


def live_heads(layer: tuple[Tensor, Tensor], ratio: float) -> Tensor:
    """Which heads [head] have a |w mu| of at least `ratio` of the largest."""
    w, mu = weights_of(layer)
    strength = (w * mu).abs()
    return strength >= ratio * strength.max()


def head_rows(found: Circuits, step: int, live_ratio: float) -> Iterator[Row]:
    """One row a head: w and mu, is it live, and how far QK and OV are from having nothing else.

    In one layer the last entry of the query is zero, so that the last row of QK is never read and
    keeps what it started with: it counts under `qk_unread`, not under `qk_other`.
    """
    for number, (qk, ov) in enumerate(found):
        w, mu = weights_of((qk, ov))
        other = qk.clone()
        other[:, range(qk.shape[1] - 1), range(qk.shape[1] - 1)] = 0
        read = other[:, :-1] if len(found) == 1 else other
        rest = ov.clone()
        rest[:, -1, -1] = 0
        columns = {
            "w": w,
            "mu": mu,
            "w_variance": qk.diagonal(dim1=1, dim2=2)[:, :-1].var(1, unbiased=False),
            "qk_other": read.abs().amax((1, 2)),
            "qk_unread": other[:, -1].abs().amax(1),
            "ov_other": rest.abs().amax((1, 2)),
            "live": live_heads((qk, ov), live_ratio),
        }
        for head in range(len(qk)):
            values = {name: column[head].item() for name, column in columns.items()}
            yield {"step": step, "layer": number, "head": head, **values}


def matrix_rows(matrices: Sequence[Tensor], step: int) -> Iterator[Row]:
    """One row an entry of each layer's matrices [head, row, col]."""
    for layer, stacked in enumerate(matrices):
        for (head, row, col), value in np.ndenumerate(stacked.cpu().numpy()):
            place = {"layer": layer, "head": head, "row": row, "col": col}
            yield {"step": step, **place, "value": value}


def best_rate(d: int, length: int, delta: float) -> float:
    """Rate of gradient descent with the least error: 1 / (1 + (1 + delta^2) d / L).

    >>> round(best_rate(5, 40, 0.01), 4)
    0.8889
    """
    return 1 / (1 + (1 + delta**2) * d / length)


def sums(layer: tuple[Tensor, Tensor], task: DataSettings, live_ratio: float) -> dict[str, float]:
    """What (w, mu) of the heads of one layer sum up to, beside the best rate.

    `imbalance` is |sum of mu| over the mean of the sums of positive and of negative mu, in size.
    """
    w, mu = weights_of(layer)
    positive, negative = mu.clamp(min=0).sum(), mu.clamp(max=0).sum()
    live = live_heads(layer, live_ratio)
    same_sign = (w.sign() == mu.sign())[live].double().mean()
    return {
        "n_heads": len(w),
        "n_live": int(live.sum()),
        "same_sign": same_sign.item(),
        "mu_positive": positive.item(),
        "mu_negative": negative.item(),
        "imbalance": ((positive + negative).abs() / ((positive - negative) / 2)).item(),
        "w_mu": (w * mu).sum().item(),
        "best_rate": best_rate(task.d, task.n_examples, task.delta),
    }


# Estimators. Each gives a prediction for the first n examples, for every n in `lengths`.


def at(
    values: Float[Tensor, "batch example *rest"], lengths: Sequence[int]
) -> Float[Tensor, "batch length *rest"]:
    """Sums over the first n examples."""
    index = torch.tensor([length - 1 for length in lengths], device=values.device)
    return values.cumsum(1)[:, index]


def attend(
    scores: Float[Tensor, "batch example head"],
    values: Float[Tensor, "batch example head"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch length"]:
    """Softmax-weighted mean of the values per head, summed over the heads.

    Numerators and denominators are running sums, so that all lengths together cost as much as one.
    """
    weights = (scores - scores.amax(1, keepdim=True)).exp()
    return (at(weights * values, lengths) / at(weights, lengths)).sum(2)


def transformer(
    model: InContextAttention,
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch length"]:
    """The model's own predictions; of one layer by its circuits, which is the same and faster."""
    if len(model.layers) > 1:
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            return model(z.to(dtype), z_q.to(dtype), lengths, factored=True).double()
    qk, ov = circuits(model)[0]
    scores = torch.einsum("bq,hqk,blk->blh", z_q, qk, z)
    return attend(scores, torch.einsum("blk,hk->blh", z, ov.squeeze(2)), lengths)


def kernel(
    w: Float[Tensor, " head"],
    mu: Float[Tensor, " head"],
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch length"]:
    """sum_h mu_h sum_i y_i softmax_i(w_h x_q.x_i)."""
    products = torch.einsum("bk,blk->bl", z_q[:, :-1], z[:, :, :-1])
    return attend(products.unsqueeze(2) * w, z[:, :, -1:] * mu, lengths)


def gradient_descent(
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
    centred: bool = False,
) -> Float[Tensor, "batch length"]:
    """One step from zero with rate 1: (1/n) sum_i y_i <x_i, x_q>; centred, with x_i less its mean.

    >>> z = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).double()  # (x, y) = (1, 2), (3, 4)
    >>> z_q = torch.tensor([[10.0, 0.0]]).double()
    >>> gradient_descent(z, z_q, [1, 2]).tolist()  # 2*10, (2*10 + 4*30) / 2
    [[20.0, 70.0]]
    >>> gradient_descent(z, z_q, [2], centred=True).tolist()  # (2*-10 + 4*10) / 2
    [[10.0]]
    """
    n = torch.tensor(lengths, device=z.device)
    products, y = torch.einsum("bk,blk->bl", z_q[:, :-1], z[:, :, :-1]), z[:, :, -1]
    step = at(y * products, lengths) / n
    return step - at(y, lengths) * at(products, lengths) / n**2 if centred else step


def ridge(
    z: Float[Tensor, "batch example d_model"],
    z_q: Float[Tensor, "batch d_model"],
    lengths: Sequence[int],
    noise_variance: float,
) -> Float[Tensor, "batch length"]:
    """The Bayes-optimal prediction x_q (X^T X + s^2 I)^-1 X^T y, s^2 the noise's variance.

    Without noise, its limit: the shortest beta that fits.
    """
    x, y = z[:, :, :-1], z[:, :, -1:]
    gram = at(x.unsqueeze(3) * x.unsqueeze(2), lengths)
    moment = at(x * y, lengths)
    if noise_variance > 0:
        penalty = noise_variance * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
        beta = torch.linalg.solve(gram + penalty, moment)
    else:
        beta = (torch.linalg.pinv(gram, hermitian=True) @ moment.unsqueeze(3)).squeeze(3)
    return torch.einsum("bk,bnk->bn", z_q[:, :-1], beta)


def predictions(
    model: InContextAttention,
    untrained: InContextAttention,
    sequences: Mapping[str, Tensor],
    lengths: Sequence[int],
    task: DataSettings,
) -> dict[str, Float[Tensor, "batch length"]]:
    """Every estimator's predictions, by name; the kernel estimator is that of one layer."""
    z, z_q = sequences["z"].double(), sequences["z_q"].double()
    descent = gradient_descent(z, z_q, lengths)
    centred = gradient_descent(z, z_q, lengths, centred=True)
    found = {"transformer": transformer(model, z, z_q, lengths)}
    if len(model.layers) == 1:
        found["kernel"] = kernel(*weights_of(circuits(model)[0]), z, z_q, lengths)
    return found | {
        "gradient descent": descent,
        DESCENT: centred * best_rate(task.d, task.n_examples, task.delta),
        "ridge": ridge(z, z_q, lengths, task.noise_variance),
        "untrained": transformer(untrained, z, z_q, lengths),
        "zero": torch.zeros_like(descent),
    }


# The best single head


def one_head_sums(
    w: Float[Tensor, " w"],
    x: Float[Tensor, "batch example d"],
    x_q: Float[Tensor, "batch d"],
    noise_variance: float,
) -> tuple[Float[Tensor, " w"], Float[Tensor, " w"]]:
    """Sums over sequences of E[y_q f] and E[f^2], f = sum_i y_i softmax_i(w x_q.x_i).

    Their means over beta and the noise are exact: with m the softmax's mean of x they are x_q.m and
    |m|^2 plus the noise's variance times the sum of squared weights.
    """
    products = torch.einsum("bd,bld->bl", x_q, x).unsqueeze(1)
    weights = (w.unsqueeze(1) * products).softmax(2)  # [batch, w, example]
    mean = weights @ x
    square = mean.pow(2).sum((0, 2)) + noise_variance * weights.pow(2).sum((0, 2))
    return (weights * products).sum((0, 2)), square


def best_of(w: np.ndarray, gain: np.ndarray) -> float:
    """Where a parabola through the largest value of `gain` and its two neighbours is largest.

    >>> best_of(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 3.0, 3.0, 0.0]))
    1.5
    """
    i = int(np.clip(gain.argmax(), 1, len(w) - 2))
    left, mid, right = gain[i - 1 : i + 2]
    return float(w[i] + (w[i + 1] - w[i]) * (left - right) / (left - 2 * mid + right) / 2)


def one_head_table(task: DataSettings, settings: MeasureSettings) -> pd.DataFrame:
    """The w of a single head with the least error, each w with its best mu, and standard errors.

    Args:
        task: its own d, and larger ones at the same d / L, on fewer sequences.

    With A(w) = E[y_q f] and B(w) = E[f^2] the best mu is A / B, and the error d - A^2 / B.
    """
    rows = []
    generator = torch.Generator().manual_seed(settings.seed)
    for factor in LARGER:
        d, length = task.d * factor, task.n_examples * factor
        larger = task.model_copy(update={"d": d, "n_examples": length})
        size = max(2, settings.sequences // (PARTS * factor**2))
        grid = SCALED_W / d**0.5
        parts = []
        for _ in range(PARTS):
            made = sample(size, larger, generator)
            x, x_q = made["z"][:, :, :-1].double(), made["z_q"][:, :-1].double()
            found = one_head_sums(torch.from_numpy(grid), x, x_q, larger.noise_variance)
            parts.append(torch.stack(found).numpy() / size)
        of_parts = np.stack(parts)
        means = of_parts.mean(0)
        without = (of_parts.sum(0) - of_parts) / (PARTS - 1)  # one part left out at a time
        w, mu, mse = one_head_best(grid, means, d)
        left_out = [one_head_best(grid, some, d)[0] for some in without]
        error = float(np.std(left_out)) * (PARTS - 1) ** 0.5  # the jackknife's
        rows.append(
            {"d": d, "length": length, "sequences": size * PARTS, "w": w, "standard_error": error}
            | {"mu": mu, "mse": mse, "large_d_w": d**-0.5}
        )
    return pd.DataFrame(rows)


def one_head_best(
    w: Float[np.ndarray, " w"], moments: Float[np.ndarray, "2 w"], d: int
) -> tuple[float, float, float]:
    """The best w of those that `moments` (A and B of each) tell of, its mu, and its error."""
    moment, square = moments
    best = best_of(w, moment**2 / square)
    at_best = [float(np.interp(best, w, values)) for values in (moment, square)]
    return best, at_best[0] / at_best[1], d - at_best[0] ** 2 / at_best[1]


# Tables


def mean_and_error(total: Tensor, squares: Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and its standard error, from n values' sum and sum of squares."""
    mean = total / n
    variance = (squares / n - mean**2).clamp(min=0) * n / (n - 1)
    return mean.cpu().numpy(), (variance / n).sqrt().cpu().numpy()


def context_table(
    model: InContextAttention,
    untrained: InContextAttention,
    task: DataSettings,
    settings: MeasureSettings,
) -> pd.DataFrame:
    """Mean squared error of every estimator over the number of examples, and standard errors."""
    lengths = settings.lengths.all
    device = next(model.parameters()).device
    longest = task.model_copy(update={"n_examples": lengths[-1]})
    generator = torch.Generator().manual_seed(settings.seed)
    totals: dict[str, Tensor] = {}  # sums of squared errors, and of their squares
    for start in range(0, settings.sequences, CHUNK):
        made = sample(min(CHUNK, settings.sequences - start), longest, generator)
        made = {name: value.to(device) for name, value in made.items()}
        target = made["y_q"].double().unsqueeze(1)
        for name, predicted in predictions(model, untrained, made, lengths, task).items():
            squared = (predicted - target) ** 2
            both = torch.stack([squared.sum(0), (squared**2).sum(0)])
            totals[name] = totals[name] + both if name in totals else both
    tables = []
    for name, (total, squares) in totals.items():
        mse, error = mean_and_error(total, squares, settings.sequences)
        columns = {"estimator": name, "length": lengths, "mse": mse, "standard_error": error}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables)


def validation_predictions(
    model: InContextAttention,
    untrained: InContextAttention,
    data: Mapping[str, Tensor],
    task: DataSettings,
) -> dict[str, Float[Tensor, " sequence"]]:
    """Every estimator's predictions for the sequences to validate on."""
    chunks = []
    for start in range(0, len(data["z"]), CHUNK):
        part = {name: value[start : start + CHUNK] for name, value in data.items()}
        chunks.append(predictions(model, untrained, part, [task.n_examples], task))
    return {name: torch.cat([chunk[name][:, 0] for chunk in chunks]) for name in chunks[0]}


def loss_table(
    predicted: Mapping[str, Float[Tensor, " sequence"]], y_q: Float[Tensor, " sequence"]
) -> pd.DataFrame:
    """Every estimator's error on the sequences to validate on.

    `excess` is the error less that of centred gradient descent at the best rate on the same
    sequences: as most of the spread is common, it tells models apart that their errors do not.
    """
    squared = {name: (values - y_q) ** 2 for name, values in predicted.items()}
    rows = []
    for name, values in squared.items():
        row: dict[str, str | float] = {"estimator": name, "n": len(values)}
        for prefix, of in (("", values), ("excess_", values - squared[DESCENT])):
            mean, error = mean_and_error(of.sum(), (of**2).sum(), len(of))
            row |= {f"{prefix}mse": float(mean), f"{prefix}standard_error": float(error)}
        rows.append(row)
    return pd.DataFrame(rows)


def training_tables(
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    model: InContextAttention,
    settings: MeasureSettings,
) -> Tables:
    """Every head's numbers at each checkpoint, and the QK matrices at `qk_steps`.

    Args:
        model: takes the weights of each checkpoint, and keeps those of the last.
    """
    heads: list[Row] = []
    qk: list[Row] = []
    steps: list[int] = []
    for step, state in states:
        model.load_state_dict(dict(state))
        found = circuits(model)
        heads += head_rows(found, step, settings.live_ratio)
        if step in settings.qk_steps:
            qk += matrix_rows([layer[0] for layer in found], step)
        steps.append(step)
    ov = matrix_rows([layer[1] for layer in found], steps[-1])
    return {"heads": pd.DataFrame(heads), "qk": pd.DataFrame(qk), "ov": pd.DataFrame(ov)}


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: TrainSettings, model: InContextAttention
) -> pd.DataFrame:
    """What training starts with for the first seed, whose start was published.

    One generator gives a batch that is only shown, then, sown anew, the weights and the batches.

    One row a number. `item`: first_query, the first x that is asked for; loss, those of the first
    two steps.
    """
    seed = train.weight_seeds[0]
    generator = torch.Generator().manual_seed(seed)
    query = sample(train.batch_size, task, generator)["z_q"][0, : task.d]
    generator.manual_seed(seed)
    network = build(model.settings, task, generator)
    optimizer = Optimizer(network, train)
    losses = []
    for _ in range(2):
        value = loss(network, sample(train.batch_size, task, generator))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    told = {"first_query": query.tolist(), "loss": losses}
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, found in told.items()
        for index, value in enumerate(found)
    )


def measure(
    model: InContextAttention,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, float]]:
    """All tables of one trained model, and the numbers that sum it up.

    The untrained network is the first checkpoint. The metric `kernel_gap` is the mean squared
    difference of the transformer and its kernel estimator over the mean squared prediction;
    `w_one_head_at_large_d` is the best w of a single head over 1 / sqrt(d), at the largest d tried.
    """
    checkpoints = iter(states)
    first = next(checkpoints)
    untrained = copy.deepcopy(model)
    untrained.load_state_dict(dict(first[1]))
    tables = training_tables(itertools.chain([first], checkpoints), copy.deepcopy(model), settings)
    predicted = validation_predictions(model, untrained, data, task)
    losses = tables["losses"] = loss_table(predicted, data["y_q"].double())
    context = tables["context"] = context_table(model, untrained, task, settings)
    names = losses["estimator"].str.replace(r"\W+", "_", regex=True)
    metrics = {f"mse_{name}": float(mse) for name, mse in zip(names, losses["mse"], strict=True)}
    own = context[context["estimator"] == "transformer"]
    metrics["largest_relative_error"] = float((own["standard_error"] / own["mse"]).max())
    if len(model.layers) == 1:
        summed = sums(circuits(model)[0], task, settings.live_ratio)
        tables["sums"] = pd.DataFrame([summed])
        gap = ((predicted["transformer"] - predicted["kernel"]) ** 2).mean()
        metrics |= summed
        metrics["kernel_gap"] = (gap / (predicted["transformer"] ** 2).mean()).item()
        if summed["n_heads"] == 1:
            table = tables["one_head"] = one_head_table(task, settings)
            metrics |= {f"{name}_one_head": float(table[name].iloc[0]) for name in ("w", "mse")}
            largest = table.iloc[-1]
            metrics["w_one_head_at_large_d"] = float(largest["w"] / largest["large_d_w"])
    return tables, metrics
