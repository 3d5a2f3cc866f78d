"""The `toycircuits` command."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from toycircuits.core import config, paths
from toycircuits.core.fast_import import import_transformer_lens

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


EXIT_CODES = """
Exit codes: 0, done; 1, something that was asked for is not so (a stage failed, results are stale,
the doctor found a failure); 2, bad input, with one line that names it; 70, an error nobody foresaw.
"""


@app.callback(epilog=EXIT_CODES)
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="show the traceback of an unforeseen error")
    ] = False,
) -> None:
    """Published toy-model circuits that run, and are checked, with one command."""


def run() -> None:
    """What the `toycircuits` script calls: an unforeseen error is one line, too."""
    try:
        app(prog_name="toycircuits")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        text = " ".join(str(error).split()) or "no message"
        hint = "`toycircuits --debug ...` shows where"
        typer.echo(f"error: {type(error).__name__}: {text}; {hint}", err=True)
        sys.exit(os.EX_SOFTWARE)


@app.command("list")
def list_runs() -> None:
    """Experiments and runs, and whether the results of each are fresh, stale or missing.

    Fresh results belong to code and settings; DVC's cache is not needed to tell.
    """
    with config.exit_on_bad_input():
        from toycircuits.commands.show import listing

        go_to_project()
        _tell(listing(config.read_params(), Path.cwd()))


@app.command()
def show(name: Annotated[str, typer.Argument(help="a run or an experiment")]) -> None:
    """Settings, metrics and claims of a run or an experiment, and where its files are.

    Metrics are those of each model; "models" is how many of them are as a claim expects.

    Example: toycircuits show list_copy_10
    """
    with config.exit_on_bad_input():
        from toycircuits.commands.show import description

        go_to_project()
        _tell(description(config.read_params(), name))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="a git revision, a `dvc exp` name, or a run")],
    b: Annotated[str, typer.Argument(help="another")] = "workspace",
    out: Annotated[Path, typer.Option(help="page with the training curves of both")] = Path(
        "compare.html"
    ),
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print Markdown, as for a pull request")
    ] = False,
) -> None:
    """Params, metrics and claims in which two revisions differ, and their training curves.

    The files as they are count as the revision "workspace". Two runs are compared as they are:
    settings, means of metrics over their models, and curves.

    Examples: toycircuits compare HEAD; toycircuits compare HEAD my-experiment;
    toycircuits compare linear_regression_h1 linear_regression_h2
    """
    with config.exit_on_bad_input():
        from toycircuits import comparison

        here, out = Path.cwd(), out.absolute()  # as meant where the command was given
        go_to_project()
        sides = comparison.sides(Path.cwd(), (a, b))
        found = comparison.differences(*sides)
        if markdown:
            typer.echo(comparison.as_markdown(found))
        else:
            _tell(comparison.as_tables(found))
        number = comparison.write_page(*sides, out)
        told = f"training curves: {_from(here, out)}" if number else "same curves"
        typer.echo(told, err=markdown)


@app.command("new-experiment")
def new_experiment(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and _")],
) -> None:
    """Write an experiment to begin with: code, settings, claims and a test, all of which work.

    Example: toycircuits new-experiment induction; make reproduce
    """
    with config.exit_on_bad_input():
        from toycircuits.commands.new_experiment import create

        go_to_project()
        for path in create(Path.cwd(), name):
            typer.echo(path)
        typer.echo(f"next: `toycircuits repro --scale quick {name}`; CONTRIBUTING.md")


@app.command()
def doctor() -> None:
    """Look whether everything is there that a reproduction needs, and say how to mend what is not.

    Exit code 1 if something fails.
    """
    with config.exit_on_bad_input():
        from toycircuits.commands.doctor import examine

        go_to_project()
        failed = False
        for finding in examine(Path.cwd()):
            failed |= finding.state == "failure"
            typer.echo(f"{finding.state:8} {finding.what}: {finding.found}")
            if finding.mend:
                typer.echo(f"{'':8} {finding.mend}")
        raise typer.Exit(failed)


@app.command()
def check() -> None:
    """Validate every setting of params.yaml, at every scale, and the files of claims."""
    with config.exit_on_bad_input():
        import_transformer_lens()
        from toycircuits.commands.check import validate, validate_claims

        go_to_project()
        params = config.read_params()
        validate(params)
        validate_claims(params, Path("claims"))
        typer.echo("params.yaml, claims/: every setting of every scale and every claim is valid")


@app.command()
def repro(
    targets: Annotated[
        list[str] | None, typer.Argument(help="stages, experiments or runs; all by default")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("-j", "--jobs", min=1, help="commands at a time; one a core by default"),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry", help="only say what would run (the copy of --scale is brought up to date)"
        ),
    ] = False,
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
    scale: Annotated[
        str | None,
        typer.Option(
            help="settings of this scale, in a copy of the project in a folder of its name"
        ),
    ] = None,
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
        from toycircuits.commands.repro import Options, reproduce

        go_to_project()
        options = Options(jobs, dry, force, keep_going, single_item, downstream, per_device)
        code = reproduce(targets or [], options, scale, engine, scheduler)
        raise typer.Exit(code)


@app.command()
def figures(
    names: Annotated[
        list[str] | None, typer.Argument(help="EXPERIMENT/NAME, or EXPERIMENT; all by default")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", help="pdf, svg or png")] = "pdf",
    width: Annotated[
        str, typer.Option(help="column (3.25 inches), page (6.75), or a number of inches")
    ] = "column",
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("figures"),
    title: Annotated[bool, typer.Option("--title", help="keep the titles")] = False,
) -> None:
    """Draw figures for print: laid out for their width, with text of 8 points.

    They are drawn from the tables in reports/. Exit code 2: bad input, or no Chrome to draw with.

    Example: toycircuits figures list_copy_10 --format svg --width page
    """
    with config.exit_on_bad_input():
        from toycircuits import export

        here, out = Path.cwd(), out.absolute()  # as meant where the command was given
        go_to_project()
        if file_format not in export.FORMATS:
            allowed = ", ".join(export.FORMATS)
            raise config.InputError(f"--format: found {file_format!r}; allowed: {allowed}")
        inches = export.inches(width)
        found = export.find(names or [], config.read_params())
        for path in export.write(found, file_format, inches, out, title):
            typer.echo(_from(here, path))


@app.command()
def fresh() -> None:
    """Check, without DVC's cache, that lock, tables and figures belong to code and params."""
    with config.exit_on_bad_input():
        from toycircuits.commands.fresh import stale

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
        from toycircuits.commands.fsck import cache_folder, damaged

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


def _tell(what: RenderableType) -> None:
    """Print it; in long lines to a file or a pipe, of which `head` may read a part."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 240
    try:
        Console(width=wide).print(what)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _from(here: Path, path: Path) -> Path:
    """`path` as it is named where the command was given."""
    return path.relative_to(here) if path.is_relative_to(here) else path


def go_to_project() -> None:
    """Work in the project folder, with the commands of this Python's environment first on PATH."""
    os.chdir(paths.find_root())
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", "")])
