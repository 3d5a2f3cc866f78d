"""The `toycircuits` command."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from toycircuits import config, layout
from toycircuits.lean import import_transformer_lens

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Published toy-model circuits that run, and are checked, with one command."""


@app.command()
def check() -> None:
    """Validate every setting of params.yaml, at every scale."""
    with config.exit_on_bad_input():
        import_transformer_lens()
        from toycircuits.validation import validate

        go_to_project()
        validate(config.read_params())
        typer.echo("params.yaml: every setting of every scale is valid")


@app.command()
def repro(
    targets: Annotated[list[str] | None, typer.Argument(help="stages; all by default")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("-j", "--jobs", min=1, help="commands at a time; one a core by default"),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="only say what would run")] = False,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="run what is up to date, too")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("-k", "--keep-going", help="after a failure, run what can be run")
    ] = False,
    single_item: Annotated[
        bool, typer.Option("-s", "--single-item", help="TARGETS alone, not what they need")
    ] = False,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="TARGETS and all that needs them")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="who runs the commands: local, dask, slurm, pbs, sge, lsf, ...")
    ] = "local",
    scheduler: Annotated[
        str | None, typer.Option(help="address of a running dask scheduler, for --engine dask")
    ] = None,
    per_device: Annotated[int, typer.Option(min=1, help="commands at a time on each GPU")] = 1,
) -> None:
    """Run whatever is not up to date, as `dvc repro` does, but several commands at a time.

    What each command prints is in logs/. Ctrl-C stops them; trainings save their state first, and
    the same command goes on from there. Exit code 1: a stage failed; 2: bad input.
    """
    with config.exit_on_bad_input():
        from toycircuits.executor.command import Options, reproduce

        go_to_project()
        options = Options(jobs, dry, force, keep_going, single_item, downstream, per_device)
        code = reproduce(targets or [], options, engine, scheduler)
        raise typer.Exit(code)


@app.command()
def fresh() -> None:
    """Check, without DVC's cache, that lock, tables and figures belong to code and params."""
    with config.exit_on_bad_input():
        from toycircuits.freshness import stale

        go_to_project()
        problems = stale(Path.cwd())
        for problem in problems:
            typer.echo(problem, err=True)
        if problems:
            raise typer.Exit(1)
        typer.echo("dvc.lock, tables and figures belong to code and params")


@app.command()
def fsck(
    remove: Annotated[bool, typer.Option(help="remove them, so that they are made anew")] = False,
) -> None:
    """Look for damaged objects in DVC's cache, which DVC itself takes as they are.

    Exit code 1 if there are any.
    """
    with config.exit_on_bad_input():
        from toycircuits.cache import cache_folder, damaged

        go_to_project()
        bad = list(damaged(cache_folder(Path.cwd())))
        for path in bad:
            typer.echo(f"damaged: {os.path.relpath(path)}", err=True)
            if remove:
                path.unlink()
        if bad:
            hint = "delete the results made of them, and reproduce" if remove else "see --remove"
            typer.echo(f"{len(bad)} damaged; {hint}", err=True)
            raise typer.Exit(1)
        typer.echo("the cache is sound")


def go_to_project() -> None:
    """Work in the project folder, with the commands of this Python's environment first on PATH."""
    os.chdir(layout.find_root())
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", "")])
