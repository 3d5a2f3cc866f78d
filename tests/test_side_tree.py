"""Another scale is reproduced in a folder of its own, and what git carries stays as it is."""

from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.slow
RUN = "list_copy_10"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Of the scale `paper`, where nothing has run; `quick` has run beside it."""
    project = Project(tmp_path_factory.mktemp("scales") / "project", [RUN], scm=True)
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
    figures = "src/toycircuits/experiments/list_copy/figures.py"
    with (project.folder / figures).open("a") as file:
        file.write("# an edit\n")
    assert reproduced(project) == {f"render@{RUN}", "report"}  # which tells when it was drawn
    assert (quick / figures).read_text().endswith("# an edit\n")
    assert (quick / "notes.txt").read_text() == "new"
    (project.folder / "notes.txt").unlink()
    params = project.read_params()
    params["quick"][RUN]["ablate"]["mean_lists"] = 99
    project.write_params(params)
    assert {f"ablate@{RUN}", f"render@{RUN}"} <= reproduced(project)
    assert not (quick / "notes.txt").exists()


def test_the_scale_of_this_tree_is_reproduced_here(project: Project) -> None:
    code, out, _ = project.run("toycircuits", "repro", "--scale", "paper", "--dry")
    assert code == 0
    assert "Running stage" in out
    assert not (project.folder / "paper").exists()


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("quik", "error: --scale: found 'quik'; allowed: quick, paper, other"),
        ("other", "is in the way of the results of --scale other; move it"),
    ],
)
def test_bad_input_is_one_line(project: Project, scale: str, message: str) -> None:
    params = project.read_params()
    project.write_params(params | {"other": params["quick"]})
    (project.folder / "other").mkdir(exist_ok=True)
    code, _, err = project.run("toycircuits", "repro", "--scale", scale)
    project.write_params(params)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err
