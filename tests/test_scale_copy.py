"""`--scale` reproduces a scale in a folder of its own, and results in git stay as they are."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.config import Config
from dvc.repo import Repo
from project import ROOT, Project
from ruamel.yaml import YAML

from toycircuits.commands.dvc_repo import cache_folder
from toycircuits.commands.scale_copy import COPIED, scale_copy
from toycircuits.core.config import InputError

pytestmark = pytest.mark.slow
RUN = "list_copy_10"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy at the scale `paper`, in which nothing has run; `quick` has run in its folder."""
    # The name has what DVC cannot write into its settings, and what a shell takes for its own.
    folder = tmp_path_factory.mktemp("scales") / "it's mødel 研究, $HOME & 100%"
    project = Project(folder, [RUN], scm=True)
    params = project.read_params()
    project.write_params(params | {"scale": "paper", "paper": params["quick"]})
    assert len(reproduced(project)) > 4
    return project


def reproduced(project: Project) -> set[str]:
    """Stages whose commands ran for `--scale quick`."""
    code, out, err = project.run("toycircuits", "repro", "--scale", "quick")
    assert code == 0, out + err
    return {line.split()[1] for line in err.splitlines() if line.split()[:1] == ["done"]}


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def test_this_tree_stays_as_it_is(project: Project) -> None:
    assert not {"artifacts", "dvc.lock", "logs"} & {path.name for path in project.folder.iterdir()}
    assert [path.name for path in (project.folder / "reports").iterdir()] == ["stages.json"]
    quick = project.folder / "quick"
    assert (quick / f"reports/{RUN}/claims.csv").exists()
    assert "scale: quick\n" in (quick / "params.yaml").read_text()
    cache = [path for path in (project.folder / ".dvc/cache/files").rglob("*") if path.is_file()]
    assert cache, "the cache is shared"
    assert not (quick / ".dvc/cache").exists()
    status = project.run("git", "status", "--porcelain", "--untracked-files=all")[1]
    assert "quick/" not in status


def test_again_nothing_runs(project: Project) -> None:
    assert reproduced(project) == set()


def test_edits_additions_and_deletions_follow(project: Project) -> None:
    quick = project.folder / "quick"
    (project.folder / "notes.txt").write_text("new")
    figures = "src/toycircuits/experiments/list_copy/figures/draw.py"
    with (project.folder / figures).open("a") as file:
        file.write("# an edit\n")
    assert reproduced(project) == {f"render@{RUN}", "report"}  # it says when they were drawn
    assert (quick / figures).read_text().endswith("# an edit\n")
    assert (quick / "notes.txt").read_text() == "new"
    (project.folder / "notes.txt").unlink()
    params = project.read_params()
    params["quick"][RUN]["ablate"]["mean_lists"] = 99
    project.write_params(params)
    assert {f"ablate@{RUN}", f"render@{RUN}"} <= reproduced(project)
    assert not (quick / "notes.txt").exists()


def test_what_a_person_puts_there_stays(project: Project) -> None:
    page = project.folder / "quick/compare.html"
    page.write_text("curves")
    params = project.folder / "quick/params.yaml"
    text = params.read_text()
    command = ("toycircuits", "repro", "--scale", "quick", "--dry")
    assert project.run(*command)[0] == 0
    params.write_text(text + "# an edit\n")
    code, out, err = project.run(*command)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {params}: this file was added or edited in the copy")
    assert params.read_text() == text + "# an edit\n"
    params.unlink()
    assert project.run(*command)[0] == 0
    assert params.read_text() == text
    assert page.read_text() == "curves"


def test_its_results_are_fresh_though_git_does_not_know_them(project: Project) -> None:
    reproduced(project)
    quick = project.folder / "quick"

    def fresh() -> tuple[int, str]:
        code, _, err = project.run("sh", "-c", "cd quick && toycircuits fresh")
        return code, err

    assert fresh() == (0, "")
    table = quick / f"reports/{RUN}/claims.csv"
    table.unlink()
    code, err = fresh()
    reader, absent = err.splitlines()
    assert code == 1
    assert reader.startswith(f"stale: section@{RUN}: reports/{RUN}/claims.csv ")
    assert absent == f"not there: reports/{RUN}/claims.csv"
    reproduced(project)


def test_the_scale_of_this_tree_has_its_folder_too(project: Project) -> None:
    code, out, _ = project.run("toycircuits", "repro", "--scale", "paper", "--dry")
    assert code == 0
    assert "Running stage" in out
    assert (project.folder / "paper/params.yaml").exists()
    shutil.rmtree(project.folder / "paper")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("quik", "error: --scale: found 'quik'; allowed: quick, paper, other"),
        ("other", "is in the way of the results of --scale other; move it"),
    ],
)
def test_bad_input_is_one_line(project: Project, scale: str, message: str) -> None:
    params = project.read_params()
    portable = params["portable"] | {"other": True}
    project.write_params(params | {"other": params["quick"], "portable": portable})
    (project.folder / "other").mkdir(exist_ok=True)
    code, _, err = project.run("toycircuits", "repro", "--scale", scale)
    project.write_params(params)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err


# --- files alone: a small project in which nothing runs ---

TEXTS = {
    "params.yaml": "scale: paper\nexperiments: {}\nruns: {}\nquick: {}\nmedium: {}\npaper: {}\n",
    "code/one.py": "one",
    "code/old/two.py": "two",
    ".gitignore": "/quick/\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    Repo.init(str(root)).close()
    return root


def contents(tree: Path) -> dict[str, str]:
    """Text of every file of `tree`."""
    files = [path for path in sorted(tree.rglob("*")) if path.is_file()]
    return {path.relative_to(tree).as_posix(): path.read_text() for path in files}


def test_only_copied_files_leave_with_their_originals(root: Path) -> None:
    tree = scale_copy(root, "quick")
    added = {"compare.html": "1", "figures/a.pdf": "2", ".venv/bin/x": "3", "code/notes.md": "4"}
    for name, text in added.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    shutil.rmtree(root / "code")
    for _ in range(2):
        scale_copy(root, "quick")
        texts = contents(tree)
        assert added.items() <= texts.items()
        assert not {"code/one.py", "code/old/two.py"} & texts.keys()
    assert not (tree / "code/old").exists()


def edit_copy(root: Path) -> str:
    (root / "quick/code/one.py").write_text("edited")
    return "code/one.py"


def edit_both(root: Path) -> str:
    (root / "code/one.py").write_text("edited here")
    return edit_copy(root)


def edit_what_left(root: Path) -> str:
    (root / "code/one.py").unlink()
    return edit_copy(root)


def edit_params(root: Path) -> str:
    (root / "quick/params.yaml").write_text("scale: quick\n")
    return "params.yaml"


def same_name(root: Path) -> str:
    (root / "quick/notes.md").write_text("mine")
    (root / "notes.md").write_text("of the project")
    return "notes.md"


def folder_in_the_way(root: Path) -> str:
    (root / "quick/notes.md").mkdir()
    (root / "notes.md").write_text("of the project")
    return "notes.md"


@pytest.mark.parametrize(
    "change",
    [edit_copy, edit_both, edit_what_left, edit_params, same_name, folder_in_the_way],
)
def test_what_would_be_lost_is_named_and_nothing_is_touched(
    root: Path, change: Callable[[Path], str]
) -> None:
    tree = scale_copy(root, "quick")
    (root / "code/new.py").write_text("new")
    (root / "code/old/two.py").unlink()
    name = change(root)
    before = contents(tree)
    with pytest.raises(InputError) as error:
        scale_copy(root, "quick")
    assert str(error.value).startswith(f"{tree / name}: this file was added or edited in the copy")
    assert "\n" not in str(error.value)
    assert contents(tree) == before
    (tree / name).rename(tree / "moved")
    scale_copy(root, "quick")
    assert (tree / "code/new.py").read_text() == "new"
    assert not (tree / "code/old/two.py").exists()


def test_the_same_edit_on_both_sides_is_none(root: Path) -> None:
    tree = scale_copy(root, "quick")
    for place in (root, tree):
        (place / "code/one.py").write_text("edited")
    scale_copy(root, "quick")
    (root / "code/one.py").write_text("edited again")
    scale_copy(root, "quick")
    assert (tree / "code/one.py").read_text() == "edited again"


def test_unchanged_files_are_not_written(root: Path) -> None:
    tree = scale_copy(root, "quick")
    os.utime(root / "code/one.py")  # as a checkout of another branch and back
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    scale_copy(root, "quick")
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


def test_a_full_disk_leaves_whole_files_and_the_next_time_mends_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_text("hal")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", full)
        with pytest.raises(OSError, match="No space"):
            scale_copy(root, "quick")
    tree = scale_copy(root, "quick")
    (root / "code/one.py").write_text("longer")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", full)
        with pytest.raises(OSError, match="No space"):
            scale_copy(root, "quick")
    assert (tree / "code/one.py").read_text() == "one"
    scale_copy(root, "quick")
    assert (tree / "code/one.py").read_text() == "longer"
    assert "hal" not in contents(tree).values()


def test_settings_of_dvc_that_a_person_gave_there_stay(root: Path) -> None:
    tree = scale_copy(root, "quick")
    remote = ["dvc", "remote", "add", "--local", "--default", "store", "/mnt/store"]
    subprocess.run([*remote], cwd=tree, check=True, capture_output=True)
    before = (tree / ".dvc/config.local").read_text()
    scale_copy(root, "quick")
    assert (tree / ".dvc/config.local").read_text() == before
    moved = root.rename(root.with_name("moved"))
    scale_copy(moved, "quick")
    assert cache_of(moved / "quick") == moved / ".dvc/cache"
    assert "/mnt/store" in (moved / "quick/.dvc/config.local").read_text()


# --- places ---


def cache_of(tree: Path) -> Path:
    return cache_folder(tree).resolve()


def settings_of_dvc(tree: Path) -> str:
    files = [tree / ".dvc" / name for name in ("config", "config.local")]
    return "".join(file.read_text(encoding="utf-8") for file in files if file.exists())


@pytest.mark.parametrize(
    "name",
    [
        *(
            "mødel 研究 ünd",
            "100% of it",
            "it's",
            'a "quote"',
            "#1",
            "$HOME",
            "-lead",
            "~",
            "a=b,c",
        ),
        *("back\\slash", "C:d", "trail ", "l" * 200, "[x]", "e\u0301", "\u202eleft"),
    ],
)
def test_a_project_may_have_any_name(root: Path, name: str) -> None:
    """DVC can write ASCII only into its settings, so no path of the machine may stand there."""
    place = root.rename(root.with_name(name))
    tree = scale_copy(place, "quick")
    assert cache_of(tree) == place / ".dvc/cache"
    assert "dir = ../../.dvc/cache\n" in settings_of_dvc(tree)
    assert str(root.parent) not in settings_of_dvc(tree)
    before = contents(tree)
    assert scale_copy(place, "quick") == tree
    assert contents(tree) == before


@pytest.mark.parametrize("level", ["--local", "--project"])
@pytest.mark.parametrize("cache", ["outside", "in the project", "absolute", "a link"])
def test_a_cache_that_a_person_chose_is_used(root: Path, level: str, cache: str) -> None:
    target = root / "own" if cache == "in the project" else root.parent / "store"
    target.mkdir()
    given = str(target) if cache == "absolute" else os.path.relpath(target, root)
    if cache == "a link":
        given = "link"
        (root / given).symlink_to(target)
    subprocess.run(["dvc", "cache", "dir", level, given], cwd=root, check=True, capture_output=True)
    tree = scale_copy(root, "quick")
    assert cache_of(tree) == target
    before = settings_of_dvc(tree)
    scale_copy(root, "quick")
    assert settings_of_dvc(tree) == before
    # An absolute path that a person gave to the project is copied as it is. We write none.
    shared = cache == "absolute" and level == "--project"
    assert (str(root.parent) in before) == shared


def test_a_cache_that_dvc_cannot_write_down_is_one_line(root: Path) -> None:
    store = root.parent / "størage"
    (root / ".dvc/config.local").write_text(f"[cache]\n    dir = {store}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"cache\.dir: found \S*størage; DVC can write ASCII only"):
        scale_copy(root, "quick")


def test_a_copy_on_another_disk_uses_the_same_cache(root: Path) -> None:
    """Where the copy's folder is a link, DVC takes `..` from where the link leads."""
    elsewhere = root.parent / "disk/deep/quick"
    (elsewhere / ".dvc").mkdir(parents=True)
    (root / "quick").symlink_to(elsewhere)
    scale_copy(root, "quick")
    assert cache_of(elsewhere) == root / ".dvc/cache"


def test_an_absolute_path_of_an_earlier_version_is_replaced(root: Path) -> None:
    tree = scale_copy(root, "quick")
    file = tree / ".dvc/config.local"
    file.write_text(file.read_text().replace("../../.dvc/cache", str(root / ".dvc/cache")))
    assert str(root) in settings_of_dvc(tree)
    scale_copy(root, "quick")
    assert str(root) not in settings_of_dvc(tree)
    assert cache_of(tree) == root / ".dvc/cache"


def test_a_remote_with_a_relative_path_is_the_same_in_the_copy(root: Path) -> None:
    places = {"beside": "../store", "inside": "own", "far": "/mnt/store", "cloud": "s3://a/b"}
    for name, url in places.items():
        command = ["dvc", "remote", "add", name, url]
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    tree = scale_copy(root, "quick")

    def urls(folder: Path) -> dict[str, str]:
        remotes = Config(str(folder / ".dvc"))["remote"].items()
        return {name: remote["url"] for name, remote in remotes}

    assert urls(tree) == urls(root)
    assert urls(tree)["beside"] == str(root.parent / "store")


def test_a_folder_without_git_is_copied_by_its_gitignore(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a ZIP of the project: nothing there is in git, and .gitignore says what would be."""
    expected = contents(scale_copy(root, "quick"))
    shutil.rmtree(root / "quick")
    shutil.rmtree(root / ".git")
    (root / "code/__pycache__").mkdir()
    (root / "code/__pycache__/x.pyc").write_text("x")
    (root / "code/.gitignore").write_text("__pycache__/\n")
    tree = scale_copy(root, "quick")
    new = contents(tree)
    assert new.pop("code/.gitignore") == "__pycache__/\n"
    unlike = (".dvc/copied.json",)
    assert {n: t for n, t in new.items() if n not in unlike} == {
        n: t for n, t in expected.items() if n not in unlike
    }
    assert cache_of(tree) == root / ".dvc/cache"
    assert capsys.readouterr().err == ""
    assert not (root / ".git").exists()


def test_a_third_scale_is_not_copied(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Git was told to ignore the folder of one scale, and lists files of another."""
    note = "note: git does not ignore /medium/; add it to .gitignore and .dvcignore\n"
    for scale, printed in (("medium", note), ("quick", ""), ("medium", note), ("quick", "")):
        tree = scale_copy(root, scale)
        assert capsys.readouterr().err == printed
        names = {name.partition("/")[0] for name in contents(tree)}
        assert names == {"params.yaml", "code", ".gitignore", ".dvc", ".dvcignore", "reports"}
        assert YAML(typ="safe").load((tree / "params.yaml").read_text())["scale"] == scale


def test_a_copy_is_not_copied(root: Path) -> None:
    tree = scale_copy(root, "quick")
    with pytest.raises(InputError, match="is a copy; give it in the project's own folder"):
        scale_copy(tree, "medium")
    with pytest.raises(InputError, match="is a copy; give it in the project's own folder"):
        scale_copy(tree, "quick")
    assert not {"medium", "quick"} & {path.name for path in tree.iterdir()}


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_list_of_copies_is_named(root: Path, text: str) -> None:
    tree = scale_copy(root, "quick")
    (tree / COPIED).write_text(text)
    with pytest.raises(InputError, match=r"copied\.json: not (a list of copied files|valid JSON)"):
        scale_copy(root, "quick")
    (tree / COPIED).unlink()
    scale_copy(root, "quick")
    assert "code/one.py" in json.loads((tree / COPIED).read_text())


def test_make_and_ci_mean_this_folder() -> None:
    workflow = YAML(typ="safe").load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["reproduce"]["steps"]
    assert {"run": "make reproduce"} in steps
    assert steps[-1]["with"]["path"] == "quick/reports"
    assert "\ttoycircuits repro --scale quick\n" in (ROOT / "Makefile").read_text()
