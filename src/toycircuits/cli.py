"""The `toycircuits` command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import psutil
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
def reproduce(
    targets: Annotated[list[str] | None, typer.Argument(help="stages; all by default")] = None,
) -> None:
    """Run whatever is not up to date: data, training, measures, ablations, figures."""
    with config.exit_on_bad_input():
        import_transformer_lens()
        from toycircuits.cache import not_stored
        from toycircuits.freshness import orphans
        from toycircuits.validation import validate

        go_to_project()
        params = config.read_params()
        validate(params, [params.get("scale", "")])
        for folder in orphans(Path.cwd(), params):
            text = "tables of no run in params.yaml, which figures would go on showing; remove them"
            typer.echo(f"note: {folder}: {text}", err=True)
        code = _repro(targets or [])
        if code:
            raise typer.Exit(code)
        if lost := not_stored(Path.cwd()):
            text = "not stored in the cache (is its disk full?); `dvc commit` stores them"
            typer.echo(f"error: {', '.join(lost)}: {text}", err=True)
            raise typer.Exit(1)
        for name in params["experiments"]:
            typer.echo(f"{name}: reports/{name}/figures, summary and tables")


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


def _repro(targets: list[str]) -> int:
    """Exit code of `dvc repro`, which is let end when it is interrupted.

    A terminal's SIGINT reaches DVC and its stage by itself, and DVC waits for the stage, which
    saves its state. SIGTERM is passed on to the stage alone; DVC would leave it running.
    """
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", *targets])

    def stop_stage(number: int, frame: object) -> None:
        started = psutil.Process(process.pid).children(recursive=True)
        for stage in [one for one in started if not one.children()]:
            stage.terminate()

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, stop_stage),
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
