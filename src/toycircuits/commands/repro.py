"""`toycircuits repro`: reproduce stages side by side.

A stage whose outputs are merely absent counts as done. If another stage needs these outputs, they
come from DVC's cache or a remote, or the stage that makes them runs again. Only trainings never run
again for this reason.
"""

import os
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dvc_parallel.bookkeeping import (
    Bookkeeping,
    Error,
    tried_with_this_dvc,
)
from dvc_parallel.display import Display
from dvc_parallel.engines import NAMES, open_engine
from dvc_parallel.errors import UsageError
from dvc_parallel.fork_starter import Preload
from dvc_parallel.outcome import Outcome, State
from dvc_parallel.params_cache import params_parsed_once
from dvc_parallel.records import Records
from dvc_parallel.schedule import Schedule
from dvc_parallel.stage_status import Stage
from toycircuits.commands.devices import devices
from toycircuits.commands.dry_run import UP_TO_DATE, are, dry_run
from toycircuits.commands.environment import check_environment
from toycircuits.commands.leftovers import all_leftovers, drop_remnants, remnants
from toycircuits.commands.scale_copy import scale_copy
from toycircuits.core.config import InputError, read_params
from toycircuits.core.paths import REPORTS, RESUME
from toycircuits.core.portable import PINS, is_portable
from toycircuits.core.report_paths import LOGS, PAGE, RECORDS
from toycircuits.report.provenance import duration, read_records
from toycircuits.revisions import check_files_of_dvc, remedy_of_dvc

CODE = ("dvc.yaml", "src", "stages")  # a record also has the params, so they are not here
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
        targets: names of stages, experiments or runs. An experiment or a run stands for its last
            stages.
        scale: reproduce this scale in a copy of the project, in the folder of this name.

    Raises:
        InputError: a setting, a target or the engine is wrong.
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
        stack.enter_context(book)  # which releases its locks, whatever happens
        why_not = _why_not(scale)
        gone = [] if targets else remnants(book, tree)
        if options.dry:
            _check(params, engine == "local")
            code = dry_run(book, plan, options.force, why_not)
            _print_leftovers([f"would drop {line}" for line in gone], params)
            return code
        if gone:
            drop_remnants(book, tree)
        if not tried_with_this_dvc():
            console.print("note: not tried with this version of DVC; `dvc repro` is the reference")
        readers = {stage.addressing for stage in book.readers(str(RECORDS))}
        spent = RESUME / "spent"
        records = Records(RECORDS, _records(), spent, readers, CODE, source) if readers else None
        on_cpu = is_portable(params)
        if on_cpu:  # a command that starts with the pins need not start again
            os.environ.update(PINS)
        may_use_gpus = engine == "local" and not on_cpu
        context = open_engine(engine, options.jobs, scheduler, PRELOAD, prefix="TOYCIRCUITS_")
        opened = stack.enter_context(context)
        display = stack.enter_context(Display(console, len(plan), LOGS))
        schedule = Schedule(
            book,
            plan,
            opened,
            display,
            LOGS,
            force=options.force,
            keep_going=options.keep_going,
            before_first=lambda: _check(params, engine == "local"),
            records=records,
            devices=devices(options.per_device, options.jobs) if may_use_gpus else None,
            why_not=why_not,
        )
        outcome = schedule.run()
    code = _report(console, outcome, display)
    _print_leftovers([f"dropped {line}" for line in gone], params)
    _print_places(console, outcome, params, Path(os.path.relpath(tree, source)))
    return code


def _print_places(
    console: Console, outcome: Outcome, params: Mapping[str, Any], tree: Path
) -> None:
    """Say where the new results are.

    Args:
        tree: the project or its copy, as a path from where the command was given.
    """
    ran = [*outcome.named("done"), *outcome.named("cached")]
    for experiment in _entries(params, "experiments"):
        if f"render@{experiment}" in ran:
            console.print(
                f"{experiment}: {tree / REPORTS / experiment}/figures, summary and tables"
            )
    if "report" in ran:
        console.print(f"all results on one page: {tree / PAGE}")


def _print_leftovers(dropped: Sequence[str], params: Mapping[str, Any]) -> None:
    """Say what was left by stages, runs and experiments that are gone, and what became of it."""
    for line in [*dropped, *all_leftovers(Path.cwd(), params)]:
        print(f"note: {line}", file=sys.stderr)


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
    """DVC's repository in the working folder, and the stages that `targets` ask for."""
    hint = ""
    check_files_of_dvc(Path())
    try:
        book = Bookkeeping(".")
        names = book.names()
        stages = [stage for target in targets for stage in _stages_of(target, names, params)]
        if targets:
            listed = ", ".join(_entries(params, "experiments"))
            hint = "; allowed: a stage (`dvc stage list`), a run (`toycircuits list`)"
            hint += f" or an experiment: {listed}"
        return book, book.plan(stages, options.single_item, options.downstream)
    except Error as error:
        reason = " ".join(str(error).split())
        raise InputError(reason + (remedy_of_dvc(reason) or hint)) from None


def _stages_of(target: str, names: Container[str], params: Mapping[str, Any]) -> list[str]:
    """Stages that `target` stands for: itself, or the last ones of an experiment or a run."""
    if target in names:
        return [target]
    if target in _entries(params, "experiments"):
        return [f"section@{target}"]
    if target in _entries(params, "runs"):
        return [f"ablate@{target}", f"measure@{target}"]
    return [target]  # it may be a file; DVC says so if there is no such thing


def _entries(params: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at `key`; empty if something else is there, which `toycircuits check` reports."""
    entries = params.get(key)
    return entries if isinstance(entries, dict) else {}


def _records() -> dict[str, Any]:
    """Stage -> the record of its last run; none if nothing has been recorded."""
    return read_records(RECORDS) if RECORDS.exists() else {}


def _why_not(scale: str | None) -> Callable[[str], str]:
    """A function from the name of a stage to why it must not run only because an output is absent.

    This is so for trainings. The text says how long one took, and the command that starts it.
    """
    records = _records()
    command = "toycircuits repro" + (f" --scale {scale}" if scale else "")

    def why_not(stage: str) -> str:
        if stage.partition("@")[0] != "train":
            return ""
        seconds = records.get(stage, {}).get("seconds")
        took = f"this training took {duration(seconds)} when it was recorded; " if seconds else ""
        return f"{took}`{command} --force {stage}` trains again"

    return why_not


def _check(params: Mapping[str, Any], is_local: bool) -> None:
    """Validate the scale and the environment of the commands before one of them runs."""
    from toycircuits.core.fast_import import import_transformer_lens

    import_transformer_lens()
    from toycircuits.commands.check import validate, validate_claims

    validate(params, [str(params.get("scale", ""))])
    validate_claims(params, Path("claims"))
    check_environment(Path.cwd(), is_local, is_portable(params))


def _report(console: Console, outcome: Outcome, display: Display) -> int:
    """Print how the reproduction ended; the exit code."""
    if {*outcome.states.values()} <= {"unchanged", "absent"} and not outcome.not_stored:
        console.print(UP_TO_DATE)
    else:
        console.print(display.summary())
    for line in _what_became_of_absent_outputs(outcome):
        console.print(line, soft_wrap=True)
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


def _what_became_of_absent_outputs(outcome: Outcome) -> Iterator[str]:
    """A line for each thing that was done about absent outputs, or not done."""
    if names := outcome.named("absent"):
        yield f"{are(names, 'done')}; the outputs are not on this machine"
    if names := outcome.named("restored"):
        yield f"{are(names, 'done')}; needed outputs came from DVC's cache: {', '.join(names)}"
    if names := outcome.named("pulled"):
        yield f"{are(names, 'done')}; needed outputs came from the remote: {', '.join(names)}"
    if names := outcome.named("remade"):
        text = f"{are(names, 'unchanged')}, and ran again because outputs were needed and absent"
        yield f"{text}: {', '.join(names)}"
