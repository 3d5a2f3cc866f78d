"""What runs in a fresh clone: git brings the results and final weights, and no DVC cache."""

import re
from pathlib import Path

import pytest
from project import Project, output

pytestmark = pytest.mark.slow
RUN = "list_copy_10"
SLICE = Path("src/toycircuits/experiments/list_copy")
WEIGHTS_ARE_ABSENT = (
    f"it needs artifacts/trajectories/{RUN} of train@{RUN}; "
    "DVC's cache does not have it, and no remote is set; "
    f"`toycircuits repro --force train@{RUN}` trains again"
)


@pytest.fixture
def clone(finished: Project, tmp_path: Path) -> Project:
    """A fresh clone of a project in which all stages have run."""
    output(tmp_path, "git", "clone", "--quiet", str(finished.folder), str(tmp_path / "clone"))
    return Project.at(tmp_path / "clone")


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def ended(err: str) -> dict[str, str]:
    """The last state of each stage that `toycircuits repro` printed a line for."""
    lines = re.findall(r"^ *(\w+) (\S+?)(?: in [\d:]+)?(?:: .*)?$", err, re.MULTILINE)
    return {stage: state for state, stage in lines if stage.endswith(RUN) or stage == "report"}


def changed(clone: Project) -> set[str]:
    """Files that git carries, and that differ from the commit."""
    return {*output(clone.folder, "git", "diff", "--name-only").split()}


def test_an_edited_ablation_runs_what_follows_it_and_no_training(clone: Project) -> None:
    edit(clone.folder / SLICE / "ablations.py", '{"loss": mean,', '{"loss": 2 * mean,')
    code, out, err = clone.run("toycircuits", "repro", "--dry")
    assert code == 0, err
    assert re.findall(r"Running stage '(.*)'", out) == [f"ablate@{RUN}"]
    remade = "1 stage is done; absent outputs are made again if they are needed"
    assert f"{remade}: generate@{RUN}\n" in out
    code, _, err = clone.run("toycircuits", "repro")
    assert code == 0, err
    follow = (f"ablate@{RUN}", f"render@{RUN}", f"judge@{RUN}", f"section@{RUN}", "report")
    assert ended(err) == {f"generate@{RUN}": "remade"} | dict.fromkeys(follow, "done")
    assert "1 stage is done; the outputs are not on this machine\n" in err
    assert not (clone.folder / "artifacts/trajectories").exists()
    assert f"reports/{RUN}/tables/{RUN}/ablations.csv" in changed(clone)
    assert clone.run("toycircuits", "fresh")[0] == 0


def test_plain_dvc_and_an_edit_that_needs_a_training(clone: Project) -> None:
    """What docs/remotes-and-ci.md says of plain DVC; nothing runs, and no result is lost."""

    def dvc(*arguments: str) -> tuple[int, str]:
        code, out, err = clone.run("python", "-m", "dvc", *arguments)
        return code, out + err

    code, printed = dvc("status")
    assert code == 0
    assert re.findall(r"not in cache: +(\S+)", printed) == [
        f"artifacts/{path}"
        for path in (
            f"data/{RUN}.safetensors",
            f"trajectories/{RUN}",
            f"figures/{RUN}",
            f"sections/{RUN}",
        )
    ]
    assert "modified" not in printed
    assert f"Running stage 'generate@{RUN}'" in dvc("repro", "--dry")[1]
    code, printed = dvc("repro", "--dry", "--allow-missing")
    assert (code, "Running stage" in printed) == (0, False)
    code, printed = dvc("pull")
    assert code == 1
    assert "no default remote set" in printed
    code, _, err = clone.run("toycircuits", "repro")
    done = "4 stages are done; the outputs are not on this machine\n"
    assert (code, err) == (0, f"Data and pipelines are up to date.\n{done}")
    assert changed(clone) == set()

    edited = SLICE / "metrics/measure.py"
    (clone.folder / edited).write_text((clone.folder / edited).read_text() + "# an edit\n")
    code, out, _ = clone.run("toycircuits", "repro", "--dry")
    assert code == 1
    assert f"cannot run measure@{RUN}: {WEIGHTS_ARE_ABSENT}\n" in out
    code, _, err = clone.run("toycircuits", "repro")
    assert code == 1
    assert f"failed measure@{RUN}: {WEIGHTS_ARE_ABSENT}\n" in err
    assert ended(err) == {f"measure@{RUN}": "failed"}
    assert changed(clone) == {edited.as_posix()}


def test_a_remote_gives_the_training_that_an_edit_needs(clone: Project, finished: Project) -> None:
    with (clone.folder / ".dvc/config").open("a") as file:
        store = finished.folder / ".dvc/cache"
        file.write(f"    remote = store\n['remote \"store\"']\n    url = {store}\n")
    with (clone.folder / SLICE / "metrics/measure.py").open("a") as file:
        file.write("# an edit\n")
    _, out, _ = clone.run("toycircuits", "repro", "--dry", f"measure@{RUN}")
    text = "absent outputs come from the remote, if it has them and they are needed"
    assert f"2 stages are done; {text}: generate@{RUN}, train@{RUN}\n" in out
    code, _, err = clone.run("toycircuits", "repro", f"measure@{RUN}")
    assert code == 0, err
    pulled = dict.fromkeys((f"generate@{RUN}", f"train@{RUN}"), "pulled")
    assert ended(err) == pulled | {f"measure@{RUN}": "done"}
    assert "2 stages are done; needed outputs came from the remote: " in err
