"""An absent file agrees with nothing, and what cannot be looked at is not absent."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Project, output

from toycircuits.commands import doctor
from toycircuits.commands.cost import costs
from toycircuits.commands.fresh import absent, outdated, stale
from toycircuits.commands.fsck import damaged
from toycircuits.commands.leftovers import all_leftovers, drop_remnants, leftovers, remnants
from toycircuits.commands.list_runs import listing
from toycircuits.commands.scale_copy import scale_copy
from toycircuits.core import paths, report_paths
from toycircuits.core.config import InputError, read_params
from toycircuits.git import files_in_git, git, has_git
from toycircuits.revisions import Files

RUN = "list_copy_10"
ANOTHER_OWNER = "GIT_TEST_ASSUME_DIFFERENT_OWNER"  # git's own tests use it


@pytest.fixture(scope="module")
def clone(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of a finished project, which has nothing but what git carries."""
    folder = tmp_path_factory.mktemp("absence") / "clone"
    output(folder.parent, "git", "clone", "--quiet", str(finished.folder), str(folder))
    return folder


@pytest.fixture
def folder(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the clone, which is the working folder."""
    shutil.copytree(clone, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def states(root: Path) -> set[str]:
    """The states that `toycircuits list` shows."""
    table = listing(read_params(root / "params.yaml"), root)
    words = " ".join(map(str, [*table.columns[2].cells, table.caption or ""]))
    return {word for word in ("fresh", "stale", "missing") if word in words}


def lines_or_error(question: Callable[[], object]) -> str:
    try:
        return str(question())
    except InputError as error:
        return f"error: {error}"


def kinds(files: set[str]) -> Iterator[str]:
    """One file of each kind: of the same folder and with the same suffix."""
    seen = set[tuple[str, str]]()
    for file in sorted(files):
        path = Path(file)
        kind = str(path.parent), path.suffix
        if kind not in seen or path.parent in (Path("stages"), Path(), Path("reports")):
            seen.add(kind)
            yield file


@pytest.mark.slow
def test_every_kind_of_file_that_git_carries_is_missed(folder: Path) -> None:
    assert stale(folder) == []
    assert states(folder) == {"fresh"}
    # DVC writes the one anew whenever it is called.
    files = [*kinds(files_in_git(folder) - {".dvc/.gitignore"})]
    assert len(files) > 40
    for file in files:
        (folder / file).rename(folder.parent / "away")
        found = lines_or_error(lambda: stale(folder))
        assert file in found, f"{file} is away, and nobody misses it: {found}"
        (folder.parent / "away").rename(folder / file)
    assert stale(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        *("stages/measure.py", "src", "src/toycircuits/report/templates", "claims"),
        *(f"claims/{RUN}.yaml", "reports/stages.json", "reports", "reports/weights"),
        *("dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config", ".dvcignore", "reports/index.html"),
        *(f"reports/{RUN}/figures", f"reports/{RUN}/tables/{RUN}/measure/metrics.csv"),
        "src/toycircuits/report/templates/page.css",
    ],
)
def test_what_a_commit_lacks_is_missed(folder: Path, path: str) -> None:
    output(folder, "git", "rm", "-r", "--quiet", path)
    output(folder, "git", "commit", "--quiet", "--message", "lost")
    found = lines_or_error(lambda: stale(folder))
    # Of a folder that a stage reads or writes, DVC does not say which file differs.
    assert path in found or (path.count("/") > 3 and f"{Path(path).parent} was modified" in found)
    if path.startswith((".dvc", "params")):  # `list` does not need the one, and dies of the other
        return
    assert lines_or_error(lambda: states(folder)) != "{'fresh'}"
    finding = lines_or_error(lambda: doctor._results(folder))
    assert "state='ok'" not in finding


@pytest.mark.slow
def test_stand_ins_for_a_file_are_not_taken_for_it(folder: Path) -> None:
    """A link to nothing, an empty folder, a staged removal, a file that git does not carry."""
    claims = folder / f"claims/{RUN}.yaml"
    claims.unlink()
    claims.symlink_to("nowhere")
    assert f"not there: claims/{RUN}.yaml" in stale(folder)
    output(folder, "git", "checkout", "--quiet", ".")
    templates = folder / "src/toycircuits/report/templates"
    shutil.rmtree(templates)
    templates.mkdir()
    assert "was modified" in str(stale(folder))
    output(folder, "git", "checkout", "--quiet", ".")
    output(folder, "git", "rm", "--quiet", "--cached", "stages/judge.py")
    assert stale(folder) == ["not in git: stages/judge.py"]
    output(folder, "git", "reset", "--quiet")
    (folder / f"reports/{RUN}/summary/more.csv").write_text("a\n1\n")
    assert f"not in git: reports/{RUN}/summary/more.csv" in stale(folder)


def test_a_project_that_lacks_a_part_is_not_taken_for_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in paths.MORE_MARKS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "stages")
    assert paths.find_root() == tmp_path
    for name in paths.MARKS:
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(InputError, match=f"{name}: missing; `git checkout {name}` restores"):
            paths.find_root()
        (tmp_path / "away").rename(tmp_path / name)


# --- git that cannot answer ---


@pytest.mark.slow
def test_a_repository_of_another_user_gets_the_remedy_of_git(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ANOTHER_OWNER, "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    questions: list[Callable[[], object]] = [
        lambda: stale(folder),
        lambda: files_in_git(folder),
        lambda: scale_copy(folder, "quick"),
        lambda: doctor._git(folder),
        lambda: Files(folder, "HEAD", folder / "scratch").get(Path("params.yaml")),
    ]
    remedy = f"`git config --global --add safe.directory {folder}` allows it"
    for question in questions:
        assert remedy in lines_or_error(question)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder / ".git"), "; `git init && git add --all && "),
        (lambda folder: (folder / ".git/index").write_text("x"), "git fails: fatal: "),
        (lambda folder: (folder / ".git/HEAD").unlink(), "git finds no repository here"),
        (lambda folder: os.environ.update(PATH="/nowhere"), "cannot be started: .*; install git"),
    ],
)
def test_an_error_of_git_is_no_empty_answer(
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    output(tmp_path, "git", "init", "--quiet")
    output(tmp_path, "git", "add", "file")
    assert files_in_git(tmp_path) == {"file"}
    monkeypatch.setenv("PATH", os.environ["PATH"])  # set back at the end
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        files_in_git(tmp_path)
    assert "\n" not in str(error.value)


def test_the_repository_of_something_else_is_not_that_of_the_project(tmp_path: Path) -> None:
    output(tmp_path, "git", "init", "--quiet")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/file").touch()
    with pytest.raises(InputError, match="has no file of this folder; `git add` the project"):
        files_in_git(tmp_path / "project")


def test_variables_of_git_hooks_name_no_other_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        folder.mkdir()
        (folder / folder.name).touch()
        output(folder, "git", "init", "--quiet")
        output(folder, "git", "add", folder.name)
    for name, place in (("DIR", ".git"), ("INDEX_FILE", ".git/index"), ("WORK_TREE", ".")):
        monkeypatch.setenv(f"GIT_{name}", str(other / place))
    monkeypatch.setenv("GIT_PREFIX", "nothing/")
    monkeypatch.setenv("GIT_COMMON_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git/objects"))
    assert files_in_git(ours) == {"ours"}


def test_git_does_not_carry_what_somebody_intends_to_add(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    output(tmp_path, "git", "init", "--quiet")
    for name in ("full", "empty", "intended", "intended_and_empty"):
        (folder / name).write_text("x" if name in ("full", "intended") else "")
    output(folder, "git", "add", "full", "empty")
    output(folder, "git", "add", "--intent-to-add", "intended", "intended_and_empty")
    assert files_in_git(folder) == {"full", "empty"}
    (folder / "full").write_text("edited")
    assert files_in_git(folder) == {"full", "empty"}
    everything = files_in_git(folder, "--cached", "--others", "--exclude-standard")
    assert everything == {"full", "empty", "intended", "intended_and_empty"}


@pytest.mark.parametrize(
    ("rev", "kind"),
    [
        ("HEAD:src/file", "a file"),
        (":src/file", "a file"),
        ("a_tag_of_a_file", "a file"),
        ("HEAD:src", "a folder"),
        ("HEAD^{tree}", "a folder"),
    ],
)
def test_what_is_no_commit_is_no_revision(tmp_path: Path, rev: str, kind: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/file").write_text("x")
    (tmp_path / ".dvc").mkdir()
    output(tmp_path, "git", "init", "--quiet")
    output(tmp_path, "git", "add", "src")
    output(tmp_path, "git", "commit", "--quiet", "--message", "start")
    output(tmp_path, "git", "tag", "-a", "-m", "tag", "a_tag_of_a_file", "HEAD:src/file")
    message = f"rev: found {rev!r}, which is {kind} in git and no commit; allowed: a git revision"
    with pytest.raises(InputError, match=re.escape(message)):
        Files(tmp_path, rev, tmp_path / "scratch").get(Path("src/file"))


def test_answers_of_git_other_than_yes_are_allowed_one_by_one(tmp_path: Path) -> None:
    output(tmp_path, "git", "init", "--quiet")
    ask = ("check-ignore", "--quiet", "x")
    assert git(tmp_path, *ask, codes=(0, 1)) == (1, "")
    with pytest.raises(InputError, match="git fails: it does not say why"):
        git(tmp_path, *ask)


# --- places that cannot be looked at: links in a circle stop even root ---


@pytest.fixture
def circle(tmp_path: Path) -> Path:
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path / "circle"


def test_what_cannot_be_looked_at_is_not_said_to_be_absent(circle: Path, tmp_path: Path) -> None:
    questions: list[Callable[[], object]] = [
        lambda: paths.exists(circle / "file"),
        lambda: has_git(circle),
        lambda: [*damaged(circle)],
        lambda: doctor._size(circle),
    ]
    for question in questions:
        with pytest.raises(OSError, match="symbolic links"):
            question()
    assert not paths.exists(tmp_path / "nothing")
    assert not paths.exists(tmp_path / "circle.txt/nothing")
    with pytest.raises(InputError, match=r"circle/file: cannot be looked up: .*symbolic links"):
        Files(tmp_path, None, tmp_path).get(Path("circle/file"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["artifacts", f"reports/{RUN}", "src/toycircuits/core", "stages/render.py"]
)
def test_a_part_of_the_project_that_cannot_be_looked_at_is_an_error(
    folder: Path, path: str
) -> None:
    place = folder / path
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)
    place.symlink_to(place.name)
    for question in (stale, outdated):
        with pytest.raises(OSError, match="symbolic links"):
            question(folder)


@pytest.mark.slow
def test_a_revision_that_dvc_cannot_read_has_an_error_and_not_no_files(folder: Path) -> None:
    (folder / "dvc.yaml").write_text("stages: [\n")
    output(folder, "git", "commit", "--quiet", "--all", "--message", "broken")
    output(folder, "git", "checkout", "--quiet", "HEAD~1", "--", "dvc.yaml")
    (folder / "scratch").mkdir()
    files = Files(folder, "HEAD", folder / "scratch")
    with pytest.raises(InputError, match=r"as of HEAD: cannot be looked up: .*dvc\.yaml"):
        files.get(paths.trajectories(RUN))
    with pytest.raises(InputError, match="rev: found 'HEAD~99'; allowed: a git revision"):
        Files(folder, "HEAD~99", folder / "scratch").get(Path("params.yaml"))


# --- what is left of runs, experiments and stages that are gone ---


def test_what_runs_and_experiments_left_is_named(tmp_path: Path) -> None:
    kept = [
        *("reports/e/tables/a/x.csv", "reports/weights/a.safetensors", "claims/e.yaml"),
        *("artifacts/data/e.safetensors", "artifacts/trajectories/a/0", "artifacts/figures/e/f"),
    ]
    gone = [
        *("reports/e/tables/b/x.csv", "reports/f/tables/a/x.csv", "reports/weights/b.safetensors"),
        *("claims/f.yaml", "artifacts/data/f.safetensors", "artifacts/trajectories/b/0"),
        *("artifacts/figures/f/f", "artifacts/sections/f/s"),
    ]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    params: dict[str, Any] = {
        "experiments": {"e": {"runs": ["a"]}},
        **{"runs": {"a": {"experiment": "e"}}, "released": ["a"]},
    }
    named = [
        *("reports/e/tables/b", "reports/f", "reports/weights/b.safetensors", "claims/f.yaml"),
        *("artifacts/data/f.safetensors", "artifacts/trajectories/b"),
        *("artifacts/figures/f", "artifacts/sections/f"),
    ]
    found = all_leftovers(tmp_path, params)
    assert [line.split(": ")[1].partition(";")[0] for line in found] == named
    assert all("`rm -r " in line for line in found), "there is no git"
    output(tmp_path, "git", "init", "--quiet")
    output(tmp_path, "git", "add", "reports", "claims")
    found = leftovers(tmp_path, params, files_in_git(tmp_path))
    assert found == [line for line in all_leftovers(tmp_path, params) if "`git rm -r " in line]
    assert len(found) == 4
    without = params | {"experiments": {"e": {"runs": []}}, "runs": {}}
    assert all_leftovers(tmp_path, without)[0].endswith("/a` removes it")


@pytest.mark.slow
def test_entries_and_records_of_stages_that_are_gone_are_dropped(folder: Path) -> None:
    from dvc_parallel.bookkeeping import Bookkeeping

    lock, records = folder / "dvc.lock", folder / report_paths.RECORDS
    records.write_text("{}\n")
    before = lock.read_bytes()
    lock.write_bytes(before + b"  train@old:\n    cmd: echo\n")
    with Bookkeeping(str(folder)) as book:
        assert remnants(book, folder) == ["dvc.lock: entry without a stage: train@old"]
        drop_remnants(book, folder)
        assert remnants(book, folder) == []
    assert lock.read_bytes() == before
    assert absent(folder) == [paths.trajectories(RUN)]
    assert costs(folder, [folder / "stages/train.py"])[0].costs[0].trainings == 1
