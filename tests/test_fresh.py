"""What does not belong together is named; a project in which all does is fresh."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from dvc.repo import Repo
from project import output
from rich.console import Console
from ruamel.yaml import YAML

from toycircuits.claims.verdict import COLUMNS
from toycircuits.commands.fresh import absent, outdated, stale
from toycircuits.commands.list_runs import NOT_HERE, listing
from toycircuits.core.config import InputError, read_params

STAGES = """\
stages:
  train:
    foreach: ${runs}
    do:
      cmd: python copy_text.py ${key} ${item.experiment}
      deps:
        - copy_text.py
      params:
        - runs.${key}
      outs:
        - reports/${item.experiment}/tables/${key}:
            cache: false
"""
PARAMS = """\
scale: quick
portable: {quick: false}
experiments: {e: {slice: list_copy, runs: [a, b]}}
runs:
  a: {experiment: e, slice: list_copy, final: artifacts/trajectories/a}
  b: {experiment: e, slice: list_copy, final: artifacts/trajectories/b}
released: []
quick: {e: {train: {weight_seeds: [0]}}}
"""
CODE = """\
import pathlib, sys
folder = pathlib.Path("reports", sys.argv[2], "tables", sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "t.csv").write_text("x")
"""


def made_of(folder: Path, files: Mapping[str, str]) -> Path:
    """A project of these files in `folder`, reproduced and committed."""
    for name, text in files.items():
        (folder / name).write_text(text)
    output(folder, "git", "init", "--quiet")
    output(folder, "dvc", "init", "--quiet")
    output(folder, "dvc", "repro", "--quiet")
    output(folder, "git", "add", ".")
    output(folder, "git", "commit", "--quiet", "--message", "reproduced")
    return folder


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two runs, reproduced and committed."""
    files = {"dvc.yaml": STAGES, "params.yaml": PARAMS, "copy_text.py": CODE}
    return made_of(tmp_path_factory.mktemp("fresh"), files)


def edit_code(folder: Path) -> None:
    (folder / "copy_text.py").write_text(CODE.replace('"x"', '"y"'))


def edit_result(folder: Path) -> None:
    (folder / "reports/e/tables/a/t.csv").write_text("typed in")


def drop_run(folder: Path) -> None:
    lines = PARAMS.replace("[a, b]", "[a]").splitlines(keepends=True)
    (folder / "params.yaml").write_text("".join(line for line in lines if " b: " not in line))


def add_run(folder: Path) -> None:
    lines = PARAMS.replace("[a, b]", "[c, a, b]").splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if line.startswith("  a: "))
    lines.insert(at, lines[at].replace("a: ", "c: ").replace("/a", "/c"))
    (folder / "params.yaml").write_text("".join(lines))


def forget_result(folder: Path) -> None:
    output(folder, "git", "rm", "--cached", "-r", "--quiet", "reports/e/tables/b")


def undrawn(folder: Path) -> None:
    note = folder / "reports/e/figures/NOT_DRAWN.txt"
    note.parent.mkdir()
    note.write_text("no Chrome")
    output(folder, "git", "add", str(note))


def lose_lock(folder: Path) -> None:
    (folder / "dvc.lock").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (lambda folder: None, []),
        (edit_code, [f"stale: train@{run}: copy_text.py was modified" for run in "ab"]),
        (edit_result, ["stale: train@a: reports/e/tables/a was modified"]),
        (
            drop_run,
            [
                "dvc.lock: entry without a stage: train@b",
                "of no run or experiment of params.yaml: reports/e/tables/b; "
                "`git rm -r reports/e/tables/b` removes it",
            ],
        ),
        (add_run, ["never run: train@c"]),
        (forget_result, ["not in git: reports/e/tables/b"]),
        (undrawn, ["pictures were not drawn: reports/e/figures/NOT_DRAWN.txt"]),
        (lose_lock, ["dvc.lock: missing; nothing has been run"]),
    ],
)
def test_what_does_not_belong_together_is_named(
    reproduced: Path, tmp_path: Path, change: Callable[[Path], None], problems: list[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(reproduced, folder)
    change(folder)
    assert stale(folder) == problems


# --- an experiment: stages under the names of dvc.yaml, and results that only the cache has ---

EXPERIMENT = """\
stages:
  generate:
    foreach: ${experiments}
    do:
      cmd: python generate.py
      deps: [generate.py]
      outs: [artifacts/data]
  train:
    foreach: ${runs}
    do:
      cmd: python train.py ${key}
      deps: [train.py, artifacts/data]
      outs:
        - artifacts/trajectories/${key}
        - reports/e/tables/${key}/training.csv:
            cache: false
  measure:
    foreach: ${runs}
    do:
      cmd: cat artifacts/trajectories/${key}/0 > reports/e/tables/${key}/measure.csv
      deps: ["artifacts/trajectories/${key}"]
      outs:
        - reports/e/tables/${key}/measure.csv:
            cache: false
  judge:
    foreach: ${experiments}
    do:
      cmd: echo HEADER > reports/e/claims.csv; mkdir reports/e/summary
      deps: [reports/e/tables]
      outs:
        - reports/e/claims.csv:
            cache: false
        - reports/e/summary:
            cache: false
"""
FILES = {
    "dvc.yaml": EXPERIMENT.replace("HEADER", ",".join(COLUMNS)),
    "params.yaml": PARAMS,
    "generate.py": (
        "import pathlib\n"
        "pathlib.Path('artifacts').mkdir(exist_ok=True)\n"
        "pathlib.Path('artifacts/data').write_text('0')\n"
    ),
    "train.py": (
        "import pathlib, sys\n"
        "folder = pathlib.Path('artifacts/trajectories', sys.argv[1])\n"
        "folder.mkdir(parents=True)\n"
        "(folder / '0').write_text(sys.argv[1])\n"
        "table = pathlib.Path('reports/e/tables', sys.argv[1], 'training.csv')\n"
        "table.parent.mkdir(parents=True, exist_ok=True)\n"
        "table.write_text('step')\n"
    ),
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two runs, reproduced and committed."""
    return made_of(tmp_path_factory.mktemp("experiment"), FILES)


@pytest.fixture
def folder(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, which is the working folder."""
    shutil.copytree(experiment, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def shown(folder: Path) -> tuple[dict[str, str], str]:
    """What `toycircuits list` says of each experiment and run, and below the table."""
    table = listing(read_params(folder / "params.yaml"), folder)
    console = Console(width=300)
    with console.capture() as capture:
        console.print(table)
    rows = [line.split() for line in capture.get().splitlines()]
    words = ("fresh", "stale", "missing")
    states = {row[0]: word for row in rows for word in words if row[:1] and word in row[1:3]}
    return states, str(table.caption or "")


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# an edit\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "would_run"),
    [("train.py", {"train@a", "train@b"}), ("generate.py", {"generate@e"})],
)
def test_an_experiment_is_stale_with_its_runs_and_they_with_their_data(
    folder: Path, code: str, would_run: set[str]
) -> None:
    """DVC's dry run names a stage whose code was edited, and not those that read its results."""
    assert shown(folder) == ({"e": "fresh", "a": "fresh", "b": "fresh"}, "")
    edit(folder / code)
    assert outdated(folder) == would_run
    assert shown(folder)[0] == {"e": "stale", "a": "stale", "b": "stale"}


@pytest.mark.slow
def test_one_stale_run_is_enough(folder: Path) -> None:
    (folder / "artifacts/trajectories/b/1").write_text("another checkpoint")
    assert outdated(folder) == {"train@b", "measure@b"}
    assert shown(folder)[0] == {"e": "stale", "a": "fresh", "b": "stale"}


@pytest.mark.slow
def test_a_clone_is_fresh_and_told_what_is_not_in_it(folder: Path) -> None:
    clone = folder.parent / "clone"
    output(folder.parent, "git", "clone", "--quiet", str(folder), str(clone))
    trained = [Path("artifacts/trajectories/a"), Path("artifacts/trajectories/b")]
    assert stale(clone) == [], "git has no empty folders, and none is asked for"
    assert absent(clone) == trained
    assert absent(folder) == []
    shutil.rmtree(folder / "artifacts")
    assert absent(folder) == [], "they are in the cache"
    shutil.copytree(folder / ".dvc/cache", clone / ".dvc/cache")
    assert absent(clone) == []
    entry = YAML(typ="safe").load((clone / "dvc.lock").read_text())["stages"]["train@b"]
    md5 = entry["outs"][0]["md5"]
    (clone / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    assert absent(clone) == trained[1:]


@pytest.mark.slow
def test_the_list_says_that_weights_are_not_here(folder: Path) -> None:
    shutil.rmtree(folder / ".dvc/cache")
    assert absent(folder) == []
    shutil.rmtree(folder / "artifacts")
    assert shown(folder) == ({"e": "fresh", "a": "fresh", "b": "fresh"}, NOT_HERE)
    params = (folder / "params.yaml").read_text().replace("[a, b]", "[c, d]")
    (folder / "params.yaml").write_text(
        params.replace("  a: {", "  c: {").replace("  b: {", "  d: {")
    )
    assert absent(folder) == [], "of runs that are gone nobody asks for them"
    # Of a new run DVC says that it fails, as its data are not here.
    assert shown(folder)[0] == {"e": "stale", "c": "missing", "d": "missing"}


@pytest.mark.slow
def test_without_a_lock_all_is_missing(folder: Path) -> None:
    for name in ("dvc.lock", "artifacts", "reports"):
        output(folder, "rm", "-r", name)
    assert absent(folder) == []
    assert shown(folder) == ({"e": "missing", "a": "missing", "b": "missing"}, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock", ".dvc/config"])
@pytest.mark.parametrize("question", [stale, outdated])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<<<<<<< ours\n", "found the conflict marker"),
        ("[[: {\n", "DVC cannot tell what is up to date: "),
    ],
)
def test_what_dvc_cannot_read_is_not_fresh(
    folder: Path, name: str, text: str, message: str, question: Callable[[Path], object]
) -> None:
    with (folder / name).open("a") as file:
        file.write(text)
    with pytest.raises(InputError) as error:
        question(folder)
    assert message in str(error.value)
    assert Path(name).name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_where_git_cannot_look_nothing_is_said_to_be_missing(folder: Path) -> None:
    (folder / ".git/index").write_text("damaged")
    with pytest.raises(InputError, match=r"git fails: .*index file") as error:
        stale(folder)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_result_that_git_has_and_the_folder_lacks_is_named(folder: Path) -> None:
    (folder / "reports/e/claims.csv").unlink()
    assert stale(folder) == ["not there: reports/e/claims.csv"]


@pytest.mark.slow
def test_a_locked_project_is_not_fresh(folder: Path) -> None:
    with Repo(str(folder)) as repo, repo.lock, pytest.raises(InputError) as error:
        outdated(folder)
    assert "up to date: Unable to acquire lock." in str(error.value)
