"""`toycircuits repro`: from its options to a schedule, and from the outcome to an exit code."""

import os
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dvc_parallel.bookkeeping import (
    Bookkeeping,
    Error,
    Stage,
    commands,
    params_parsed_once,
    tried_with_this_dvc,
)
from dvc_parallel.display import Display
from dvc_parallel.engines import NAMES, open_engine
from dvc_parallel.errors import UsageError
from dvc_parallel.fork_starter import Preload
from dvc_parallel.records import Records
from dvc_parallel.schedule import Outcome, Schedule, State
from dvc_parallel.worker import ANSWER_WITHIN
from toycircuits.commands.fresh import orphans
from toycircuits.commands.scale_copy import scale_copy
from toycircuits.core.config import InputError, read_params
from toycircuits.core.paths import RECORDS, RESUME

LOGS = Path("logs")
PAGE = Path("reports/index.html")
CODE = ("dvc.yaml", "src", "stages")  # settings are recorded by themselves
# What stages import. None of it may start threads or look at a device. The code of this project is
# not among it: each command imports the code that is there when it starts.
PRELOAD = Preload(
    modules=(
        "toycircuits.core.fast_import:import_transformer_lens",
        *("torch", "pandas", "plotly.express", "plotly.io", "typer", "pydantic", "jaxtyping"),
        *("filelock", "safetensors.torch", "tqdm", "ruamel.yaml", "scipy"),
    ),
    fresh=("toycircuits",),
)
UP_TO_DATE = "Data and pipelines are up to date."  # as DVC says it


@dataclass(frozen=True)
class Options:
    """Options of `dvc repro`, and how many commands may run at a time."""

    jobs: int | None = None
    dry: bool = False
    force: bool = False
    keep_going: bool = False
    single_item: bool = False
    downstream: bool = False
    per_device: int = 1


def reproduce(
    targets: Sequence[str],
    options: Options,
    scale: str | None = None,
    engine: str = "local",
    scheduler: str | None = None,
) -> int:
    """Reproduce `targets` of the project in the working folder; the exit code.

    Args:
        targets: names of stages, or of experiments and runs, which stand for what they end with.
        scale: if it is not that of params.yaml, reproduce in a folder of its name.

    Raises:
        InputError: a setting, a target, or the engine.
    """
    if engine not in NAMES:
        raise InputError(f"--engine: found {engine!r}; allowed: {', '.join(NAMES)}")
    console = Console(highlight=False, stderr=True)
    source = Path.cwd()
    tree = scale_copy(source, scale) if scale else source
    os.chdir(tree)
    params = read_params()
    with _usage_errors(), params_parsed_once(), ExitStack() as stack:
        book, plan = _plan(targets, options, params)
        if options.dry:
            return _dry(book, plan, options.force)
        if not tried_with_this_dvc():
            console.print("note: not tried with this version of DVC; `dvc repro` is the reference")
        readers = {stage.addressing for stage in book.readers(str(RECORDS))}
        records = Records(RECORDS, RESUME / "spent", readers, CODE, source) if readers else None
        opened = stack.enter_context(
            open_engine(engine, options.jobs, scheduler, PRELOAD, prefix="TOYCIRCUITS_")
        )
        display = stack.enter_context(Display(console, len(plan), LOGS))
        schedule = Schedule(
            book,
            plan,
            opened,
            display,
            LOGS,
            force=options.force,
            keep_going=options.keep_going,
            before_first=lambda: _check(params),
            records=records,
            devices=_devices(options.per_device) if engine == "local" else None,
        )
        outcome = schedule.run()
    code = _report(console, outcome, display)
    ran = [name for name, state in outcome.states.items() if state in ("done", "cached")]
    for experiment in _entries(params, "experiments"):
        if f"render@{experiment}" in ran:
            place = os.path.relpath(tree / "reports" / experiment, source)
            console.print(f"{experiment}: {place}/figures, summary and tables")
    if "report" in ran:
        console.print(f"all of it on one page: {os.path.relpath(tree / PAGE, source)}")
    return code


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn the errors that dvc_parallel raises about a user's input into ours."""
    try:
        yield
    except UsageError as error:
        raise InputError(str(error)) from None


def _plan(
    targets: Sequence[str], options: Options, params: Mapping[str, Any]
) -> tuple[Bookkeeping, dict[Stage, set[Stage]]]:
    """The books of the project in the working folder, and the stages that `targets` ask for."""
    hint = ""
    try:
        book = Bookkeeping(".")
        stages = [stage for target in targets for stage in _meant(target, book.names(), params)]
        if targets:
            listed = ", ".join(_entries(params, "experiments"))
            hint = "; `dvc stage list` lists the stages, and a run or an experiment stands for its"
            hint += f" own; experiments: {listed}"
        return book, book.plan(stages, options.single_item, options.downstream)
    except Error as error:
        raise InputError(" ".join(str(error).split()) + hint) from None


def _meant(target: str, known: Container[str], params: Mapping[str, Any]) -> list[str]:
    """Stages that `target` stands for: itself, or the last ones of an experiment or a run."""
    if target in known:
        return [target]
    if target in _entries(params, "experiments"):
        return [f"section@{target}"]
    if target in _entries(params, "runs"):
        return [f"ablate@{target}", f"measure@{target}"]
    return [target]  # a file perhaps; DVC says if there is no such thing


def _entries(params: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What stands at `key`; nothing if it is no mapping, of which others tell."""
    entries = params.get(key)
    return entries if isinstance(entries, dict) else {}


def _dry(book: Bookkeeping, plan: Mapping[Stage, set[Stage]], force: bool) -> int:
    """Print what would run, and what may, as it reads what those make.

    `dvc repro --dry` names the first alone, and fails where a result does not exist yet.
    """
    would, may = list[Stage](), list[Stage]()
    for stage, needs in plan.items():
        if needs & {*would, *may} and not force:
            may.append(stage)
        elif force or book.changed(stage):
            would.append(stage)
            print(f"Running stage '{stage.addressing}':")
            print(*(f"> {command}" for command in commands(stage)), sep="\n")
    if may:
        print("may run then:", ", ".join(stage.addressing for stage in may))
    if not would:
        print(UP_TO_DATE)
    return 0


def _check(params: Mapping[str, Any]) -> None:
    """Validate the chosen scale before anything of it runs, and tell of tables without a run."""
    from toycircuits.core.fast_import import import_transformer_lens

    import_transformer_lens()
    from toycircuits.commands.check import validate, validate_claims

    validate(params, [str(params.get("scale", ""))])
    validate_claims(params, Path("claims"))
    for folder in orphans(Path.cwd(), params):
        text = "tables of no run in params.yaml, which figures would go on showing; remove them"
        print(f"note: {folder}: {text}", file=sys.stderr)


def _devices(per_device: int) -> list[str] | None:
    """Names of GPUs, each as often as it may be used at a time; None if there are none to share.

    An empty name stands for a device that the commands know by themselves.
    """
    asked = os.environ.get("TOYCIRCUITS_DEVICE", "auto")
    if asked.startswith("cuda:"):
        return [""] * per_device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked == "cpu" or visible in ("", "-1"):
        return None
    if visible is not None:
        return [name.strip() for name in visible.split(",")] * per_device
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            check=True,
            timeout=ANSWER_WITHIN,
        )
    except (OSError, subprocess.SubprocessError):  # no such tool, or it fails
        return None
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(number) for number in range(count)] * per_device or None


def _report(console: Console, outcome: Outcome, display: Display) -> int:
    """Say how it ended; the exit code."""
    if not set(outcome.states.values()) - {"unchanged"}:
        console.print(UP_TO_DATE)
        return 0
    console.print(display.summary())
    headings: dict[State, str] = {"failed": "failed", "stopped": "stopped", "skipped": "not run"}
    for state, text in headings.items():
        if names := outcome.named(state):
            console.print(f"{text}: {', '.join(names)}", soft_wrap=True)
    if outcome.not_stored:
        text = "not stored in the cache (is its disk full?); `dvc commit` stores them"
        console.print(f"error: {', '.join(outcome.not_stored)}: {text}", soft_wrap=True)
    if outcome.signal:
        console.print("The same command goes on from here.")
        return 128 + outcome.signal
    return int(bool(outcome.named("failed") or outcome.not_stored))
