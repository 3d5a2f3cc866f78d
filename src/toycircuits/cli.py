"""The `toycircuits` command."""

import os
import subprocess
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
def reproduce(
    targets: Annotated[list[str] | None, typer.Argument(help="stages; all by default")] = None,
) -> None:
    """Run whatever is not up to date: data, training, measures, ablations, figures."""
    with config.exit_on_bad_input():
        import_transformer_lens()
        from toycircuits.freshness import orphans
        from toycircuits.validation import validate

        go_to_project()
        params = config.read_params()
        validate(params, [params.get("scale", "")])
        for folder in orphans(Path.cwd(), params):
            text = "tables of no run in params.yaml, which figures would go on showing; remove them"
            typer.echo(f"note: {folder}: {text}", err=True)
        command = [sys.executable, "-m", "dvc", "repro", *(targets or [])]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise typer.Exit(code)
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


def go_to_project() -> None:
    """Work in the project folder, with the commands of this Python's environment first on PATH."""
    os.chdir(layout.find_root())
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", "")])
