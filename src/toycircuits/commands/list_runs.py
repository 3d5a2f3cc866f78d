"""`toycircuits list`: all experiments and runs, and whether their results are fresh."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from toycircuits.claims.verdict import read_verdicts
from toycircuits.commands.fresh import absent, outdated
from toycircuits.core import paths, report_paths
from toycircuits.core.config import InputError, Run, find_run, runs_of
from toycircuits.core.messages import quoted

COLORS = {"fresh": "green", "stale": "yellow", "missing": "red"}
PAGE_IS_STALE = f"{report_paths.PAGE} is stale or missing: `toycircuits fresh` says why"
NOT_HERE = (
    "checkpoints of trainings are not here, and are needed only to study the training: `dvc pull` "
    "brings them from a remote, `toycircuits repro --force train@RUN` trains a run again"
)


def listing(params: Mapping[str, Any], root: Path) -> Table:
    """All experiments and runs, at the scale of params.yaml, and the state of each.

    An experiment is stale if one of its runs is, because its figures show all of them.

    Raises:
        InputError: a setting is wrong, or DVC cannot tell what is up to date.
    """
    stale_stages = outdated(root)
    table = Table(title=f"scale: {params['scale']}", title_justify="left", box=None, pad_edge=False)
    for name in ("experiment, run", "models", "state", "claims reproduced"):
        table.add_column(name, justify="right" if name == "models" else "left")
    for experiment in params["experiments"]:
        runs = [find_run(params, name) for name in runs_of(params, experiment)]
        states = {run.name: run_state(run, stale_stages) for run in runs}
        overall = experiment_state(experiment, states.values(), stale_stages)
        table.add_row(f"[bold]{experiment}", "", _colored(overall), _reproduced(experiment))
        for run in runs:
            n_models = len(run.variants) * _n_seeds(run)
            table.add_row(f"  {run.name}", str(n_models), _colored(states[run.name]), "")
    stale_page = PAGE_IS_STALE if "report" in stale_stages else ""
    notes = [note for note in (stale_page, NOT_HERE if absent(root) else "") if note]
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def _n_seeds(run: Run) -> int:
    """How many models of each variant are trained."""
    values, key = run.values("train")
    seeds = values.get("weight_seeds")
    if not isinstance(seeds, list):
        raise InputError(f"{key}.weight_seeds: found {quoted(seeds)}; allowed is a list of seeds")
    return len(seeds)


def run_state(run: Run, stale_stages: Collection[str]) -> str:
    """Whether the results of `run` are "fresh", "stale" or "missing".

    Args:
        stale_stages: names of the stages that are not up to date, or whose results are not there.
    """
    if not paths.exists(paths.training_table(run.entry.experiment, run.name)):
        return "missing"
    stages = {f"{verb}@{run.name}" for verb in ("train", "release", "measure", "ablate")}
    stages.add(f"generate@{run.entry.experiment}")
    return "fresh" if stages.isdisjoint(stale_stages) else "stale"


def experiment_state(
    experiment: str, run_states: Collection[str], stale_stages: Collection[str]
) -> str:
    """Whether the results of `experiment` are "fresh", "stale" or "missing".

    Args:
        run_states: those of its runs.
        stale_stages: as for `run_state`.
    """
    if not paths.exists(report_paths.claims_table(experiment)):
        return "missing"
    stages = {f"{verb}@{experiment}" for verb in ("generate", "render", "judge", "section")}
    is_fresh = stages.isdisjoint(stale_stages) and {*run_states} <= {"fresh"}
    return "fresh" if is_fresh else "stale"


def _colored(state: str) -> str:
    return f"[{COLORS[state]}]{state}[/]"


def _reproduced(experiment: str) -> str:
    """How many claims are reproduced; empty if nothing has been judged yet."""
    if not paths.exists(file := report_paths.claims_table(experiment)):
        return ""
    outcomes = read_verdicts(file)["outcome"]
    return f"{(outcomes == 'reproduced').sum()} of {len(outcomes)}"
