"""The commands of cuda.py: they measure cell by cell, and write one Markdown file."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cuda_agreement import APART, EARLY, FIRST, FLOOR, LATE, Agreement, compare
from cuda_grokking import QUANTILES, RUN, Curves, phases_of, quantile, rules_of, train_many
from cuda_machine import NONE, OUT_OF_TIME, Deadline, attempt, description
from cuda_rates import (
    CHECKED,
    TOLERANCE,
    Clock,
    Many,
    Single,
    measure_compiled,
    measure_many,
    measure_single,
    within,
)
from cuda_tables import Report
from cuda_trainings import Case, read_case

from toycircuits.core.config import exit_on_bad_input, read_params
from toycircuits.core.device import prepare

ROOT = Path(__file__).resolve().parents[2]
# Every kind of architecture. The longest training comes last, and gets the time that others leave.
COMPARED = [
    ("order_by_scale_2l", ""),
    ("linear_regression_h2", ""),
    ("reverse_increment_random", ""),
    ("list_copy_10", ""),
    ("list_copy_100_2l", "free_V_free_O"),
    ("list_copy_100_3l", "frozen_V_frozen_O"),
    ("order_by_scale_2l_ln", ""),
    ("list_copy_100_2l_ln_bias", "free_V_free_O"),
    ("linear_regression_stack", "untied"),
    ("modular_subtraction", ""),
]
TIMED = [
    ("modular_subtraction", ""),
    ("order_by_scale_2l", ""),
    ("list_copy_100_2l", "free_V_free_O"),
    ("reverse_increment_random", ""),
    ("linear_regression_h2", ""),
    ("list_copy_10", ""),
    ("list_copy_100", ""),
    ("list_copy_100_2l_ln_bias", "free_V_free_O"),
    ("list_copy_100_3l", "frozen_V_frozen_O"),
    ("linear_regression_stack", "untied"),
]
STACKED = TIMED[:3]
SIZES = (8, 64, 256)
# A dry run has small models, few steps and few models.
TINY_RUNS = [
    ("order_by_scale_2l", ""),
    ("linear_regression_h2", ""),
    ("reverse_increment_random", ""),
    ("modular_subtraction", ""),
]
TINY_STACKED, TINY_SIZES, TINY_STEPS = [TINY_RUNS[0], TINY_RUNS[3]], (2, 3), 4
# Of the time that is left when a part begins, the share that it may take.
AGREEMENT_SHARE, SINGLE_SHARE, MANY_SHARE = 0.3, 0.5, 0.9
# Seconds that a cell may need: none begins with less time left.
FOR_AGREEMENT, FOR_SINGLE, FOR_COMPILED, FOR_MANY = 5, 10, 40, 15

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Part(StrEnum):
    """What to do."""

    TABLE = "table"
    GROK = "grok"


@dataclass(frozen=True)
class Plan:
    """What is measured, and where.

    Attributes:
        params: params.yaml.
        tiny: whether this is a dry run.
    """

    params: dict[str, Any]
    device: torch.device
    tiny: bool

    @property
    def clock(self) -> Clock:
        """How steps are timed."""
        return Clock(rounds=1, seconds=0.01) if self.tiny else Clock()

    def case(self, run: str, variant: str, scale: str) -> Case:
        """A case at `scale`; in a dry run at the quick one."""
        return read_case(self.params | {"scale": "quick" if self.tiny else scale}, run, variant)


def fill(row: Many, measure: Callable[[], object], deadline: Deadline) -> None:
    """Let `measure` fill in a row. If it fails, the cells that are still open say why."""
    failure = attempt(measure, deadline)
    if isinstance(failure, str):
        for one in fields(row):
            if getattr(row, one.name) == OUT_OF_TIME:
                setattr(row, one.name, failure)


def report_agreement(report: Report, plan: Plan, deadline: Deadline) -> None:
    """The section that compares the device with the CPU."""
    text = (
        "The quick scale. The device and the CPU train in float32, and a third training runs in "
        "float64. A cell has the relative distance of the device from float64, and in brackets "
        f"that of the CPU. The device may be {EARLY} times as far as the CPU, plus {FLOOR:.1e}, in "
        f"the gradient and in the first {FIRST} losses, and {LATE} times as far, plus "
        f"{FLOOR:.1e}, in all losses and in the final one. Losses are judged until the CPU is "
        f"{APART} from float64: after that, chance decides how far rounding errors have grown. "
        "Shares of right answers are not judged, because they jump."
    )
    columns = ["run", "steps", "gradient", f"first {FIRST} losses", "judged up to", "all losses"]
    report.begin("Agreement", text, [*columns, "final loss", "right answers: device (CPU)"])
    runs = TINY_RUNS if plan.tiny else COMPARED
    for place, (run, variant) in enumerate(runs):
        part = deadline.share(1 / (len(runs) - place))
        report.put(place, *_compared(plan, run, variant, part))


def _compared(plan: Plan, run: str, variant: str, deadline: Deadline) -> tuple[list[object], bool]:
    """The cells of one run, and whether one is outside its tolerance."""
    name, most = f"{run} {variant}".strip(), TINY_STEPS if plan.tiny else None
    if deadline.left < FOR_AGREEMENT and not plan.tiny:
        return [name, OUT_OF_TIME, *[NONE] * 6], False
    # `compare` ends in time by itself, with what it has; this is for a device that hangs.
    late = Deadline(deadline.left + FOR_AGREEMENT)
    case = plan.case(run, variant, "quick")
    found = attempt(lambda: compare(case, plan.device, deadline, most), late)
    if isinstance(found, str):
        return [name, found, *[NONE] * 6], True
    return [name, *_agreement_cells(found)], not found.holds


def _agreement_cells(found: Agreement) -> list[object]:
    steps = f"{found.taken:,} of {found.planned:,}"
    shares = [f"{name} {a:.4g} ({b:.4g})" for name, (a, b) in found.shares.items()]
    cells = [steps, found.gradient, found.first, f"{found.held:,}", found.losses, found.evaluation]
    return [*cells, ", ".join(shares) or NONE]


def report_single(report: Report, plan: Plan, deadline: Deadline) -> dict[str, float]:
    """The section on one model at a time; returns name of the run -> steps/s of its graph."""
    text = (
        "The paper scale, one model. A step draws or copies its batch, computes loss and gradient, "
        "and updates the weights. With a graph, one launch does all of this but the batch. Where "
        "the last batch of an epoch is smaller, its step is eager. The difference is the largest "
        f"relative one between the losses of {CHECKED} steps with and without a graph, and may be "
        f"{TOLERANCE}. The CPU computes eagerly, with one thread; benchmarks/README.md has its "
        "compiled steps, which are often faster."
    )
    columns = ["run", "eager, steps/s", "graph, steps/s", "difference", "CPU eager, steps/s"]
    report.begin("One model", text, [*columns, "graph / CPU eager"])
    rates: dict[str, float] = {}
    for place, (run, variant) in enumerate(TINY_RUNS if plan.tiny else TIMED):
        case, row = plan.case(run, variant, "paper"), Single()
        if deadline.left > FOR_SINGLE or plan.tiny:
            measure_single(case, plan.device, plan.clock, row, deadline)
        cells = [case.name, row.eager, row.graph, _difference(row.difference), row.cpu]
        report.put(place, [*cells, _ratio(row.graph, row.cpu)], not within(row.difference))
        if isinstance(row.graph, float):
            rates[case.name] = row.graph
    return rates


def _ratio(value: float | str, other: float | str | None) -> float | str:
    return value / other if isinstance(value, float) and isinstance(other, float) else NONE


def _difference(value: float | str) -> str:
    text = value if isinstance(value, str) else f"{value:.1e}"
    return text if within(value) else f"{text} **OUTSIDE**"


def report_many(report: Report, plan: Plan, deadline: Deadline, singles: dict[str, float]) -> None:
    """The section on many models side by side.

    Args:
        singles: name of the run -> steps/s of one model's graph.
    """
    text = (
        "The paper scale, each model with its own weights and its own order of batches. "
        "Model-steps per second are steps per second times models. The ratio compares the graph "
        "with that of one model. The first and the last model are also trained alone. The "
        f"difference is the largest relative one between their losses in {CHECKED} steps, alone "
        f"and side by side, and may be {TOLERANCE}. At once: models that fit into memory together. "
        "Memory: the most that tensors have had at a time, with a graph."
    )
    columns = ["run", "models", "at once", "eager, model-steps/s", "graph, model-steps/s"]
    report.begin("Many models", text, [*columns, "ratio", "difference", "memory, GB"])
    cells = [
        (*one, n)
        for n in (TINY_SIZES if plan.tiny else SIZES)  # the largest last, if time is short
        for one in (TINY_STACKED if plan.tiny else STACKED)
    ]
    for place, (run, variant, n) in enumerate(cells):
        case, row = plan.case(run, variant, "paper"), Many(n)
        if deadline.left > FOR_MANY or plan.tiny:
            cell = functools.partial(measure_many, case, plan.device, plan.clock, row)
            fill(row, cell, deadline)
        ratio = _ratio(row.graph, singles.get(case.name))
        found = [case.name, n, row.chunk, row.eager, row.graph, ratio]
        report.put(
            place, [*found, _difference(row.difference), row.memory], not within(row.difference)
        )


def report_compiled(report: Report, plan: Plan, deadline: Deadline) -> None:
    """The section on compiled steps. It comes last: it needs a compiler, and takes long."""
    text = (
        "The paper scale, one model, loss and gradient by torch.compile, as the project trains. "
        "PyTorch's deterministic mode is on, in which the compiler may refuse to make graphs."
    )
    report.begin("Compiled", text, ["run", "steps/s"])
    for place, (run, variant) in enumerate(reversed(STACKED)):  # small models compile fastest
        case = plan.case(run, variant, "paper")
        rate: float | str = OUT_OF_TIME
        if deadline.left > FOR_COMPILED:
            cell = functools.partial(measure_compiled, case, plan.device, plan.clock)
            rate = attempt(cell, deadline)
        report.put(place, [case.name, rate])


def report_grokking(report: Report, plan: Plan, deadline: Deadline, n: int | None) -> None:
    """Train many seeds of modular_subtraction; write their curves, phases and quantiles.

    Args:
        n: how many seeds; None for as many as the time allows.
    """
    case = plan.case(RUN, "", "paper")
    file = report.path.with_suffix(".csv")
    most, n = (TINY_STEPS, n or TINY_SIZES[-1]) if plan.tiny else (case.train.length, n)
    curves = train_many(case, plan.device, deadline, n, file, most)
    rules = rules_of(plan.params | {"scale": "quick" if plan.tiny else "paper"})
    phases = phases_of(curves, case.data.modulus, rules)
    phases.to_csv(report.path.with_name(f"{report.path.stem}_phases.csv"), index=False)
    columns = ["what", "seeds", *(f"{q:.0%}" for q in QUANTILES)]
    report.begin("Epochs", _grokking_text(curves, rules, file), columns)
    names = [name for name in map(str, phases) if name.endswith(("_epoch", "_end"))]
    for place, name in enumerate(names):
        epochs = phases[name].to_list()
        found = [quantile(epochs, q) for q in QUANTILES]
        late = f"after {curves.epochs:,}"
        texts = [late if value == float("inf") else f"{value:,.0f}" for value in found]
        report.put(place, [name, f"{phases[name].notna().sum()} of {len(epochs)}", *texts])


def _grokking_text(curves: Curves, rules: dict[str, float], file: Path) -> str:
    seeds = f"Seeds {curves.seeds[0]} to {curves.seeds[-1]}"
    return (
        f"{seeds}, {curves.epochs:,} of {curves.planned:,} epochs ({curves.why}), all side by side "
        f"as one training. {file.name} has the losses of each seed. An epoch counts as soon as it "
        "is logged. The rules are those of the project: a network has memorised when its training "
        f"loss is under {rules['memorised_below']:g} nats, and grokked when its test loss, past "
        f"its maximum, is under {rules['grokked_below']:g}. The quantiles are over all seeds, also "
        "those that are not done."
    )


def run_table(report: Report, plan: Plan, deadline: Deadline) -> None:
    """All sections of the table."""
    report_agreement(report, plan, deadline.share(AGREEMENT_SHARE))
    singles = report_single(report, plan, deadline.share(SINGLE_SHARE))
    report_many(report, plan, deadline.share(MANY_SHARE), singles)
    if plan.device.type == "cuda":
        report_compiled(report, plan, deadline)


@app.command()
def main(
    part: Annotated[Part, typer.Argument(help="the table, or curves of many seeds")] = Part.TABLE,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
    minutes: Annotated[float, typer.Option(min=0, help="that all of it may take")] = 7.5,
    out: Annotated[Path | None, typer.Option(help="the Markdown file")] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="a dry run: small models, few steps")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="of grok; default: as many as fit")
    ] = None,
    commit: Annotated[str, typer.Option(help="of the checkout, where there is no git")] = "",
    wheels: Annotated[Path | None, typer.Option(help="folder with missing packages")] = None,
) -> None:
    """Measure, and write a Markdown file; exit code 1 if something is outside its tolerance."""
    deadline = Deadline(60 * minutes)
    with exit_on_bad_input():
        torch_device = prepare(device)
        torch.set_float32_matmul_precision("highest")  # no TF32
        plan = Plan(read_params(ROOT / "params.yaml"), torch_device, tiny)
        names = {Part.TABLE: "cuda.md", Part.GROK: "cuda_grok.md"}
        titles = {Part.TABLE: "Training on a GPU", Part.GROK: f"Many seeds of {RUN}"}
        facts = description(torch_device, commit)
        if tiny:
            facts["sizes"] = "a dry run: all at the quick scale, with few steps and few models"
        facts["arithmetic"] = "float32, TF32 off; PyTorch's deterministic mode on, except in graphs"
        report = Report(out or ROOT / "benchmarks" / names[part], titles[part], facts)
        if part is Part.TABLE:
            run_table(report, plan, deadline)
        else:
            report_grokking(report, plan, deadline, seeds)
    print(report.path, file=sys.stderr)
    if report.problems:
        print(f"outside their tolerance, or failed: {report.problems}", file=sys.stderr)
        raise typer.Exit(1)
