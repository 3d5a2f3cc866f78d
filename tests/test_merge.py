"""Merges of two branches that both have results: no record of a run that never was."""

import shutil
from pathlib import Path

import pytest
from parallel.graphs import Graph, Stages
from project import ROOT, output

from toycircuits.core import paths, report_paths

# The output tells whether both inputs are 1, so that an edit of one of them does not change it.
BOTH = "paste -s a_one z_two | tr -d '\\n' | grep -q 11 && echo yes > out || echo no > out"
STAGES: Stages = {
    "both": {"cmd": BOTH, "deps": ["a_one", "middle", "z_two"], "outs": ["out"]},
}


def git(graph: Graph, *arguments: str) -> str:
    return output(graph.folder, "git", *arguments)


def commit(graph: Graph, message: str) -> None:
    """Reproduce and commit, as a person does on a branch."""
    graph.run()
    git(graph, "add", "a_one", "middle", "z_two", "dvc.yaml", "dvc.lock", "params.yaml")
    git(graph, "commit", "--quiet", "--message", message)


@pytest.fixture
def branches(tmp_path: Path) -> Graph:
    """A repository in which each of two branches edits an input and reproduces."""
    graph = Graph(tmp_path / "graph", STAGES)
    for name in ("a_one", "middle", "z_two"):
        (graph.folder / name).write_text("0\n")
    git(graph, "init", "--quiet", "--initial-branch", "main")
    commit(graph, "start")
    for branch, name in (("theirs", "z_two"), ("ours", "a_one")):
        git(graph, "checkout", "--quiet", "-b", branch, "main")
        (graph.folder / name).write_text("1\n")
        commit(graph, branch)
    return graph


@pytest.mark.slow
def test_a_merge_records_no_run_that_never_was(branches: Graph) -> None:
    """What docs/faq.md says to do: reproduce, add and commit."""
    shutil.copy(ROOT / ".gitattributes", branches.folder)
    before = branches.lock()
    with pytest.raises(AssertionError, match=r"Merge conflict in dvc\.lock"):
        git(branches, "merge", "theirs")
    assert branches.lock() == before, "git put conflict markers or lines of the other side into it"
    assert branches.run() == {"both": "done"}
    assert (branches.folder / "out").read_text() == "yes\n"
    commit(branches, "merged")
    assert "up to date" in branches.dvc("status")


@pytest.mark.slow
def test_without_the_attributes_git_makes_up_a_record(branches: Graph) -> None:
    """The reason for them. If this fails, they are no longer needed."""
    git(branches, "merge", "--quiet", "--message", "merged", "theirs")
    assert "up to date" in branches.dvc("status")
    assert (branches.folder / "out").read_text() == "no\n", "and yet both inputs are 1"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "dvc.lock",
            report_paths.RECORDS,
            report_paths.PAGE,
            report_paths.claims_table("e"),
            report_paths.metrics_file("e"),
        ),
        *(paths.training_table("e", "run"), report_paths.figure_png("e") / "a.png"),
        *(paths.weights_file("run"), report_paths.summary("e") / "a.csv"),
    ],
)
def test_records_and_results_are_not_merged_line_by_line(name: Path | str) -> None:
    said = output(ROOT, "git", "check-attr", "merge", "--", str(name))
    assert said == f"{name}: merge: unset\n"


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "claims/e.yaml", "src/a.py"])
def test_what_people_write_is_merged_line_by_line(name: str) -> None:
    assert output(ROOT, "git", "check-attr", "merge", "--", name).endswith(": unspecified\n")
