"""Does a device train as the CPU does? Trainings in step with each other, compared with float64.

Three trainings take the same steps from the same weights: one on the device in float32, one on the
CPU in float32, and one on the CPU in float64. The third tells how far rounding has moved the other
two. A training multiplies a rounding error at each step, so no fixed tolerance is right for all
runs and lengths. But it multiplies the errors of both devices alike. So the tolerance of the
device's distance is a multiple of the CPU's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from cuda_machine import Deadline
from cuda_trainings import Case, Training, in_precision
from torch import Tensor

# Two orders of summation on the CPU (the two forms of a forward pass) are at the same distance from
# float64 within a factor of 4, in the first steps. 10 allows for other kernels. Products in TF32,
# whose numbers have 10 bits after the point and not 23, would be thousands of times as far away.
EARLY = 10
# Over hundreds of steps errors grow by what is chance, and the two orders were up to 8 times apart.
LATE = 100
# Eight times the distance between neighbouring float32 numbers, relative: a distance of the CPU may
# be small by chance.
FLOOR = 8 * 2.0**-23
# Where the CPU's float32 is as far as this from float64, the trainings have come apart, and a
# distance says little about the device: 100 times as much would be a tenth of the loss.
APART = 1e-3
FIRST = 10  # steps that are also judged alone: rounding has hardly grown in them
CHECK_EVERY = 20  # steps between looks at the clock

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Distance:
    """How far the device and the CPU, both in float32, are from float64, relative to its value.

    Attributes:
        multiple: how many times as far as the CPU the device may be.
    """

    device: float
    cpu: float
    multiple: int

    @property
    def is_judged(self) -> bool:
        """Whether the CPU is near enough to float64 to say something about the device."""
        return self.cpu <= APART

    @property
    def holds(self) -> bool:
        """Whether the device is within its tolerance, or not judged."""
        return not self.is_judged or self.device <= self.multiple * self.cpu + FLOOR

    def __str__(self) -> str:
        """Both distances, and what is to be said about them."""
        text = f"{self.device:.1e} ({self.cpu:.1e})"
        if not self.is_judged:
            return f"{text} not judged"
        return text if self.holds else f"{text} **OUTSIDE**"


@dataclass(frozen=True)
class Agreement:
    """What one run gives.

    Attributes:
        taken, planned: steps.
        gradient: of the first batch; the norm of the difference.
        first: the largest of the losses of the first `FIRST` steps.
        held: steps until the CPU's float32 is `APART` from float64, or the end.
        losses: the largest of the losses of these steps.
        evaluation: the largest of the losses that the training log tells of the final weights.
        shares: name -> values on the device and on the CPU of what else the log tells. They are
            shares of right answers, which jump, and are not judged.
    """

    taken: int
    planned: int
    gradient: Distance
    first: Distance
    held: int
    losses: Distance
    evaluation: Distance
    shares: Mapping[str, tuple[float, float]]

    @property
    def holds(self) -> bool:
        """Whether all distances are within their tolerance."""
        judged = (self.gradient, self.first, self.losses, self.evaluation)
        return all(distance.holds for distance in judged)


def compare(
    case: Case,
    device: torch.device,
    deadline: Deadline,
    most_steps: int | None = None,
    begin: Callable[[], Training] | None = None,
) -> Agreement:
    """Train on the device and on the CPU in step, until the run or the time ends.

    Args:
        most_steps: stop after so many.
        begin: makes the training that is judged; by default it is the case's own on `device`.
    """
    judged = begin() if begin else case.begin(device)
    three = [judged, case.begin(CPU), case.begin(CPU, dtype=torch.float64)]
    planned = case.train.length
    if case.train.unit == "epoch":
        planned *= three[0].stream.per_epoch
    gradient = _of_gradients(three)
    losses: list[list[Tensor]] = [[], [], []]
    end = planned if most_steps is None else min(planned, most_steps)
    while len(losses[0]) < end:
        for training, found in zip(three, losses, strict=True):
            found.append(training.advance())
        if len(losses[0]) % CHECK_EVERY == 0 and deadline.passed:
            break
    table = torch.stack([torch.stack(found).double().cpu() for found in losses])
    apart = (table[1] - table[2]).abs() > APART * table[2].abs()
    held = max(1, int(apart.int().argmax())) if apart.any() else table.shape[1]
    values = _evaluated(case, three)
    by_loss = [_distance(*row) for name, row in values.items() if "loss" in name]
    return Agreement(
        taken=table.shape[1],
        planned=planned,
        gradient=gradient,
        first=_largest(table[:, :FIRST], EARLY),
        held=held,
        losses=_largest(table[:, :held], LATE),
        evaluation=max(by_loss, key=lambda distance: distance.device),
        shares={name: row[:2] for name, row in values.items() if "loss" not in name},
    )


def _of_gradients(three: Sequence[Training]) -> Distance:
    """The distance of the gradients of the first batch, as vectors of all parameters."""
    flat = []
    for training in three:
        batch = in_precision(three[0].example(), training.parameters[0].dtype)
        batch = {name: value.to(training.device) for name, value in batch.items()}
        _, gradients = training.differentiate(training.model, batch)
        found = [gradient.flatten() for gradient in gradients if gradient is not None]
        flat.append(torch.cat(found).double().cpu())
    exact = flat[2].norm()
    one, other = (float((vector - flat[2]).norm() / exact) for vector in flat[:2])
    return Distance(one, other, EARLY)


def _largest(losses: Tensor, multiple: int) -> Distance:
    """The largest distances of rows of losses, [3, step]: device, CPU and float64."""
    apart = ((losses[:2] - losses[2]).abs() / losses[2].abs()).amax(1)
    apart = apart.nan_to_num(nan=math.inf)
    return Distance(float(apart[0]), float(apart[1]), multiple)


def _distance(device: float, cpu: float, exact: float) -> Distance:
    return _largest(torch.tensor([[device], [cpu], [exact]], dtype=torch.float64), LATE)


def _evaluated(case: Case, three: Sequence[Training]) -> dict[str, tuple[float, float, float]]:
    """Name -> value on the device, on the CPU and in float64, of what the training log tells."""
    rows = []
    for training in three:
        data = case.tensors_on(training.device, training.parameters[0].dtype)
        with torch.no_grad():
            rows.append(case.task.evaluate(training.model, data))
    return {name: (rows[0][name], rows[1][name], rows[2][name]) for name in rows[0]}
