"""`toycircuits repro --dry`: what would run, and where absent inputs would come from."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from dvc_parallel.bookkeeping import Bookkeeping, commands
from dvc_parallel.schedule import needs
from dvc_parallel.stage_status import Stage

UP_TO_DATE = "Data and pipelines are up to date."  # as DVC says it


@dataclass
class Forecast:
    """What a reproduction would do.

    Attributes:
        changed: stages that would run.
        later: stages that read the outputs of these, and run if the outputs differ.
        absent: stages that are done, but outputs of them are not in the workspace.
        restored: of these, stages whose outputs would come from DVC's cache.
        pulled: stages whose outputs would come from a remote, if it has them.
        remade: stages that would run again.
        refused: stages that cannot run, and why.
    """

    changed: list[Stage] = field(default_factory=list)
    later: list[Stage] = field(default_factory=list)
    absent: list[Stage] = field(default_factory=list)
    restored: list[Stage] = field(default_factory=list)
    pulled: list[Stage] = field(default_factory=list)
    remade: list[Stage] = field(default_factory=list)
    refused: dict[Stage, str] = field(default_factory=dict)


def dry_run(
    book: Bookkeeping,
    plan: Mapping[Stage, set[Stage]],
    force: bool,
    why_not: Callable[[str], str],
) -> int:
    """Print what `toycircuits repro` would do; its exit code, as far as it is known.

    `dvc repro --dry` also prints changed stages, but fails if an input does not exist yet.
    """
    forecast = _forecast(book, plan, force, why_not)
    for stage in forecast.changed:
        print(f"Running stage '{stage.addressing}':")
        print(*(f"> {command}" for command in commands(stage)), sep="\n")
    if forecast.later:
        print("may run then:", _names(forecast.later))
    if not forecast.changed:
        print(UP_TO_DATE)
    untouched = [*forecast.absent]
    for stages, text in (
        (forecast.restored, "come from DVC's cache if they are needed"),
        (forecast.pulled, "come from the remote, if it has them and they are needed"),
        (forecast.remade, "are made again if they are needed"),
    ):
        untouched = [stage for stage in untouched if stage not in stages]
        if stages:
            print(f"{are(stages, 'done')}; absent outputs {text}: {_names(stages)}")
    if untouched:
        print(f"{are(untouched, 'done')}; the outputs are not on this machine")
    for stage, why in forecast.refused.items():
        print(f"cannot run {stage.addressing}: {why}")
    return int(any(stage in forecast.refused for stage in forecast.changed))


def are(stages: Collection[object], what: str) -> str:
    """How many stages are `what`: "1 stage is done"."""
    return f"{len(stages)} {'stage is' if len(stages) == 1 else 'stages are'} {what}"


def _forecast(
    book: Bookkeeping,
    plan: Mapping[Stage, set[Stage]],
    force: bool,
    why_not: Callable[[str], str],
) -> Forecast:
    """What a reproduction would do. No remote is asked."""
    forecast = Forecast()
    for stage, before in plan.items():
        if force:
            forecast.changed.append(stage)
        elif before & {*forecast.changed, *forecast.later}:
            forecast.later.append(stage)
        elif (status := book.status(stage)) in ("changed", "missing"):
            forecast.changed.append(stage)
        elif status == "absent":
            forecast.absent.append(stage)
    runs = [*forecast.changed, *forecast.later]
    for stage in runs:  # stages to remake are appended
        for maker, outputs in book.absent_inputs(stage).items():
            if maker in runs or maker in [*forecast.restored, *forecast.pulled]:
                continue
            if book.in_cache(outputs):
                forecast.restored.append(maker)
            elif book.has_remote(outputs):
                forecast.pulled.append(maker)
            elif reason := why_not(maker.addressing):
                text = "DVC's cache does not have it, and no remote is set"
                forecast.refused[stage] = needs(maker, outputs, f"{text}; {reason}")
            else:
                forecast.remade.append(maker)
                runs.append(maker)
    return forecast


def _names(stages: Collection[Stage]) -> str:
    return ", ".join(stage.addressing for stage in stages)
