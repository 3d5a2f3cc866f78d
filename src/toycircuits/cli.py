"""The `toycircuits` command: its subcommands and their options. `commands/` does the work."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from toycircuits import api
from toycircuits.commands import environment, streams, usage
from toycircuits.core import config, paths
from toycircuits.core.messages import in_one_line

EXIT_CODES = """
Exit codes: 0, done; 1, the answer is no: a stage failed, results are stale, the cache is damaged,
or the doctor found a failure; or the machine refuses: a full disk, or no Chrome; 2, bad input, and
one line says what is wrong with it; 70, an unexpected error.
"""
PIPE_WIDTH = 240  # columns of a table that goes to a file or a pipe

app = typer.Typer(
    cls=usage.Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> bool:
    if is_asked:
        print(f"toycircuits {api.version()}")
        raise typer.Exit
    return is_asked


@app.callback(epilog=EXIT_CODES)
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="show the traceback of an unexpected error")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Reproduce circuits of published toy models, and judge every published claim about them."""
    with config.exit_on_bad_input():
        _working_folder()


def run() -> None:
    """Run the command. An error is shown as one line; `--debug` shows an unexpected one in full."""
    streams.restart_in_utf8()
    streams.prepare()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="toycircuits", standalone_mode=False)
    except usage.USAGE_ERROR as error:
        sys.exit(usage.explain(error))
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        hint = "`toycircuits --debug ...` shows where"
        print(f"error: {type(error).__name__}: {usage.in_words(error)}; {hint}", file=sys.stderr)
        sys.exit(os.EX_SOFTWARE)
    if problem := streams.failure():
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(int(code or 0) or int(bool(problem)))


@app.command("list")
def list_runs() -> None:
    """List experiments and runs, and whether the results of each are fresh, stale or missing.

    Fresh results are those of the code and settings as they are. DVC's cache is not needed.
    """
    with _in_project(needs_git=True) as root:
        from toycircuits.commands.list_runs import listing

        _print(listing(_params(), root))


@app.command()
def show(name: Annotated[str, typer.Argument(help="a run or an experiment")]) -> None:
    """Show settings, metrics, claims and files of a run or an experiment.

    Metrics are shown for each model. In the table of claims, "models" says how many models are as
    the claim expects.

    Example: toycircuits show list_copy_10
    """
    with _in_project():
        from toycircuits.commands.show import description

        _print(description(_params(), name))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="a git revision, a `dvc exp` name, or a run")],
    b: Annotated[str, typer.Argument(help="another one")] = "workspace",
    out: Annotated[Path, typer.Option(help="page for the training curves of both")] = Path(
        "compare.html"
    ),
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print Markdown, for example for a pull request")
    ] = False,
) -> None:
    """Show the params, metrics and claims in which two revisions differ, and draw their curves.

    The revision "workspace" means the files as they are. Of two runs, the command compares
    settings, metrics (means over their models) and training curves.

    Examples: toycircuits compare HEAD; toycircuits compare HEAD my-experiment;
    toycircuits compare linear_regression_h1 linear_regression_h2
    """
    here, out = Path.cwd(), out.absolute()
    with _in_project() as root:
        from toycircuits.commands import compare as comparison

        if out.is_dir():
            raise config.InputError(f"--out: found the folder {out}; allowed: the name of a file")
        sides = comparison.sides(root, (a, b))
        parts = comparison.differences(*sides)
        if markdown:
            print(comparison.as_markdown(parts))
        else:
            _print(comparison.as_tables(parts))
        is_written = comparison.write_page(*sides, out) > 0
        text = f"training curves: {_seen_from(here, out)}" if is_written else "same curves"
        print(text, file=sys.stderr if markdown else sys.stdout)


@app.command()
def analyse(
    weights: Annotated[Path, typer.Argument(help="safetensors, or a file of `torch.save`")],
    run: Annotated[str, typer.Option(help="whose settings to use: a run of params.yaml")],
    scale: Annotated[
        str, typer.Option(help="at which scale; paper has the settings of the published studies")
    ] = "paper",
    variant: Annotated[
        str | None, typer.Option(help="a variant of the run; by default the one that fits")
    ] = None,
    model: Annotated[str | None, typer.Option(help="which model, if the file has several")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the tables; by default analysis/NAME")
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="also write a page with figures and claims there")
    ] = False,
) -> None:
    """Measure and ablate somebody's own weights as if they were a model of a run.

    The file has a state dict, with the parameter names of TransformerLens 1 to 4. Claims that the
    tables decide are judged, also for an untrained network as a control.

    Example: toycircuits analyse model.pt --run order_by_scale_2l --page
    """
    here, weights = Path.cwd(), weights.absolute()
    with _in_project():
        from toycircuits.commands import analyse as analysis

        _params()
        name = weights.stem if model is None else f"{weights.stem}_{model}"
        out = here / (out or Path("analysis") / name)
        results = analysis.run_analysis(weights, run, scale, variant, model, out)
        files = analysis.write(results, out, with_page=page)
        _print(analysis.as_tables(results))
        print(f"{len(files)} files: {in_one_line(str(_seen_from(here, out)))}/")
        if page:
            print(f"page: {in_one_line(str(_seen_from(here, files[-1])))}")


@app.command("new-experiment")
def new_experiment(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and _")],
) -> None:
    """Write a small experiment that works, with code, settings, claims and a test, to start from.

    Example: toycircuits new-experiment induction; make reproduce
    """
    with _in_project() as root:
        from toycircuits.commands.new_experiment import create

        for path in create(root, name):
            print(path)
        print(f"next: `toycircuits repro --scale quick {name}`; CONTRIBUTING.md")


@app.command()
def doctor() -> None:
    """Look for everything that a reproduction needs, and say how to mend what is missing.

    Exit code 1 if there is a failure.
    """
    with _in_project() as root:
        from toycircuits.commands.doctor import doctor as run_doctor

        raise typer.Exit(not run_doctor(root))


@app.command()
def check() -> None:
    """Validate all settings of params.yaml, at every scale, and all files of claims."""
    with _in_project():
        from toycircuits.commands.check import check_all

        check_all(config.read_params())
        print("params.yaml, claims/: every setting of every scale and every claim is valid")


@app.command()
def repro(
    targets: Annotated[
        list[str] | None, typer.Argument(help="stages, experiments or runs; all by default")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("-j", "--jobs", min=1, help="commands at a time; by default one per core"),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry", help="only say what would run (the copy of --scale is brought up to date)"
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="also run stages that are up to date")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("-k", "--keep-going", help="after a failure, run what can be run")
    ] = False,
    single_item: Annotated[
        bool, typer.Option("-s", "--single-item", help="run only TARGETS, not what they need")
    ] = False,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="run TARGETS and all stages that need them")
    ] = False,
    scale: Annotated[
        str | None,
        typer.Option(help="use the settings of this scale, in a copy of the project named like it"),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="what runs the commands: local, dask, slurm, pbs, sge, lsf, ...")
    ] = "local",
    scheduler: Annotated[
        str | None, typer.Option(help="address of a running dask scheduler, for --engine dask")
    ] = None,
    per_device: Annotated[int, typer.Option(min=1, help="commands at a time on each GPU")] = 1,
) -> None:
    """Run whatever is not up to date, as `dvc repro` does, but several commands at a time.

    The output of each command is in logs/. After Ctrl-C, trainings save their state and stop, and
    the same command goes on from there. Exit code 1: a stage failed; 2: bad input.
    """
    with _in_project(needs_git=scale is None):
        from toycircuits.commands.repro import Options, reproduce

        _params()  # DVC's own message would name dvc.yaml
        options = Options(jobs, dry, force, keep_going, single_item, downstream, per_device)
        raise typer.Exit(reproduce(targets or [], options, scale, engine, scheduler))


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

    They are drawn from the tables in reports/. Exit code 1: Chrome does not draw; 2: bad input.

    Example: toycircuits figures list_copy_10 --format svg --width page
    """
    here, out = Path.cwd(), out.absolute()
    with _in_project():
        from toycircuits.commands.figures import print_figures

        params = _params()
        for path in print_figures(names or [], params, file_format, width, out, title):
            print(_seen_from(here, path))


@app.command()
def cost(
    files: Annotated[
        list[Path] | None, typer.Argument(help="files or folders; all code by default")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
) -> None:
    """Show which stages an edit of FILES makes stale, and how long these took when they last ran.

    "readers" counts the stages that read the file, "stale" these and all that follow. A stage that
    follows only runs if its inputs change. "untimed" counts stale stages whose time is not
    recorded, as that of `report` never is. Files in one row cost the same; after a pattern, numbers
    range from its cheapest file to its dearest.

    Example: toycircuits cost src/toycircuits/core/training.py
    """
    absolute = [file.absolute() for file in files or ()]
    with _in_project(needs_git=True) as root:
        from toycircuits.commands.cost import as_markdown, as_table, costs

        _params()
        rows = costs(root, absolute)
        if markdown:
            print(as_markdown(rows))
        else:
            _print(as_table(rows))


@app.command()
def fresh() -> None:
    """Check that dvc.lock, tables and figures belong to code and params; needs no DVC cache.

    Exit code 1 if they do not.
    """
    with _in_project(needs_git=True) as root:
        from toycircuits.commands.fresh import stale

        _params()
        problems = stale(root)
        for problem in problems:
            print(problem, file=sys.stderr)
        if problems:
            raise typer.Exit(1)
        print("dvc.lock, tables and figures belong to code and params")


@app.command()
def attest(
    scale: Annotated[
        str | None, typer.Option(help="look at the copy that `repro --scale` made of this scale")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="make the file of hashes from these results")
    ] = False,
) -> None:
    """Check that results are, to the byte, those of the machine that attest/SCALE.json names.

    Final weights, tables and summaries are compared. Only portable scales have such a file. Exit
    code 1 if results differ or are missing.

    Example: toycircuits attest --scale quick
    """
    with _in_project(needs_git=scale is None) as root:
        from toycircuits.commands import attest as attestation

        place = attestation.find_place(root, scale)
        if write:
            print(attestation.write_attestation(place))
        else:
            raise typer.Exit(not attestation.attest(place))


@app.command()
def fsck(
    remove: Annotated[
        bool, typer.Option(help="remove damaged objects, so that DVC makes new ones")
    ] = False,
) -> None:
    """Look for damaged objects in DVC's cache, which DVC itself does not notice.

    Exit code 1 if there are any.
    """
    with _in_project(needs_git=True) as root:
        from toycircuits.commands.fsck import fsck as run_fsck

        raise typer.Exit(not run_fsck(root, remove))


@contextmanager
def _in_project(needs_git: bool = False) -> Iterator[Path]:
    """Work in the project folder, which is yielded; bad input ends the command with one line.

    Commands of this Python's environment come first on PATH, so that stages use them.

    Args:
        needs_git: whether the command works in a git repository only, or in a scale copy.
    """
    with config.exit_on_bad_input():
        here, root = Path.cwd(), paths.find_root()
        if root not in (here, *here.parents):  # it is the project that this code comes from
            print(f"note: there is no project around {here}; this is {root}", file=sys.stderr)
        environment.check_bars()
        environment.mend_home()
        if needs_git:
            environment.check_git(root)
        os.chdir(root)
        folders = [str(Path(sys.executable).parent), os.environ.get("PATH") or os.defpath]
        os.environ["PATH"] = os.pathsep.join(folders)
        yield Path.cwd()


def _working_folder() -> Path:
    """The folder in which a person gives the command.

    Raises:
        InputError: it has been removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        text = "the working folder does not exist any more; `cd` to another one"
        raise config.InputError(text) from None


def _params() -> dict[str, Any]:
    """All of params.yaml; bad input ends the command before DVC or anything else reads the file."""
    from toycircuits.commands.structure import read_project

    return read_project()


def _print(content: RenderableType) -> None:
    """Print to the terminal; to a file or a pipe in long lines."""
    columns = os.environ.get("COLUMNS", "")
    is_width = columns.isdecimal() and int(columns) > 0
    width = int(columns) if is_width else None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width).print(content)


def _seen_from(here: Path, path: Path) -> Path:
    """`path` relative to the folder `here` if it is in it: the folder of the person who asks."""
    return path.relative_to(here) if path.is_relative_to(here) else path
