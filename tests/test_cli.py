"""The commands that print: list, show, compare, doctor; and how errors are shown."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from project import ROOT, Project, environment_of
from rich.console import Console
from typer.testing import CliRunner

from toycircuits import cli
from toycircuits.claims.card import read_card
from toycircuits.claims.verdict import read_verdicts
from toycircuits.commands import compare as comparison
from toycircuits.commands import doctor
from toycircuits.commands.compare import Side
from toycircuits.core.config import InputError
from toycircuits.core.report_paths import claims_table
from toycircuits.revisions import Files

SOURCE = {"PYTHONPATH": str(ROOT / "src")}
CALL = "from toycircuits.cli import run; run()"


def toycircuits(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """What the command prints, on both streams, in a terminal that is wide enough."""
    done = subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment_of(COLUMNS="300", **(SOURCE | environment)),
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with one experiment, its results committed."""
    copy = Project(tmp_path_factory.mktemp("cli") / "project", ["list_copy_10"], scm=True)
    toycircuits(copy.folder, "repro")
    for command in (["add", "-A"], ["commit", "--quiet", "--message", "results"]):
        subprocess.run(["git", *command], cwd=copy.folder, check=True)
    return copy


@pytest.mark.slow
def test_list_distinguishes_fresh_stale_and_missing(project: Project) -> None:
    def states() -> list[str]:
        rows = [line.split() for line in toycircuits(project.folder, "list").splitlines()]
        return [next(word for word in row if word in ("fresh", "stale", "missing"))
                for row in rows if row and row[0] == "list_copy_10"]  # fmt: skip

    assert states() == ["fresh", "fresh"]  # the experiment, its run
    params = project.read_params()
    changed = project.read_params()
    changed["quick"]["list_copy_10"]["ablate"]["mean_lists"] = 50
    project.write_params(changed)
    assert states() == ["stale", "stale"]
    final = "artifacts/trajectories/list_copy_10_again"
    changed["runs"]["list_copy_10_again"] = changed["runs"]["list_copy_10"] | {"final": final}
    changed["experiments"]["list_copy_10"]["runs"].append("list_copy_10_again")
    project.write_params(changed)
    rows = toycircuits(project.folder, "list").splitlines()
    assert [line.split()[-1] for line in rows if "again" in line] == ["missing"]
    project.write_params(params)


@pytest.mark.slow
def test_show_has_settings_metrics_claims_and_files(project: Project) -> None:
    output = toycircuits(project.folder, "show", "list_copy_10")
    assert 'optimizer: "AdamW"' in output
    assert "loss_above_floor" in output
    claim = read_card(ROOT / "claims/list_copy_10.yaml").claims[0]
    assert claim.statement[:40] in output
    assert "reports/weights/list_copy_10.safetensors" in output
    message = "error: found 'list_copy'; there are: list_copy_10\n"
    assert toycircuits(project.folder, "show", "list_copy", code=2) == message


@pytest.mark.slow
def test_compare_shows_what_differs_from_a_revision(project: Project, tmp_path: Path) -> None:
    same = toycircuits(project.folder, "compare", "HEAD", "workspace", "--out", "page.html")
    assert "params: none differ" in same
    assert "same curves" in same
    assert not (project.folder / "page.html").exists()

    params = project.read_params()
    changed = project.read_params()
    changed["quick"]["list_copy_10"]["train"]["lr"] = 0.5
    project.write_params(changed)
    toycircuits(project.folder, "repro")
    page = tmp_path / "page.html"
    output = toycircuits(project.folder, "compare", "HEAD", "--out", str(page))
    assert "quick.list_copy_10.train.lr" in output
    assert "list_copy_10.loss_above_floor" in output
    assert "Plotly.newPlot" in page.read_text()
    assert 'src="http' not in page.read_text()
    project.write_params(params)
    toycircuits(project.folder, "repro")
    message = "error: rev: found 'HEAD~9'; allowed: a git revision or the name of a `dvc exp` "
    assert toycircuits(project.folder, "compare", "HEAD~9", code=2).startswith(message)


def side(name: str, outcome: str, loss: float) -> Side:
    claim = {"statement": "It learns.", "outcome": outcome, "measured": str(loss)}
    log = {"variant": "", "seed": 0, "step": [0, 1], "lr": 0.1, "loss": [3.0, loss]}
    curves = {"run": pd.DataFrame(log)}
    claims = {("one", "learns"): claim, ("one", "other"): claim | {"outcome": "reproduced"}}
    return Side(name, {"lr": 0.1, "width": 8}, {"loss": loss, "same": 1.0}, claims, curves)


def test_only_differences_are_shown() -> None:
    console = Console(width=200)
    sides = side("A", "reproduced", 1.0), side("B", "not reproduced", 2.0)
    with console.capture() as capture:
        console.print(comparison.as_tables(comparison.differences(*sides)))
    output = capture.get()
    assert "params: none differ" in output
    assert "same" not in output
    assert output.count("It learns.") == 1
    assert "reproduced (1.0)  not reproduced (2.0)" in output
    assert re.search(r"reproduced +2 of 2 +1 of 2", output)
    (figure,) = comparison.figures(*sides)
    assert sorted(line.name for line in figure.data) == ["A", "B"]
    assert [*comparison.figures(sides[0], sides[0])] == []


def test_values_that_differ_after_six_digits_differ() -> None:
    a, b = (Side(name, {"lr": lr}, {}, {}, {}) for name, lr in (("A", 0.1234567), ("B", 0.1234568)))
    (params, metrics) = comparison.differences(a, b)
    assert params.rows == [("lr", "0.1234567", "0.1234568")]
    assert metrics.rows == []
    assert comparison.differences(a, a)[0].rows == []


def test_revisions_without_a_run_in_common_are_compared() -> None:
    """If one revision has no results yet, runs of the other are named, and nothing is drawn."""
    with_results = side("A", "reproduced", 1.0)
    without = Side("B", with_results.params, {}, {}, {})
    for pair in ((with_results, without), (without, with_results)):
        assert [*comparison.figures(*pair)] == []
        (runs,) = [part for part in comparison.differences(*pair) if part.title == "runs"]
        assert [row[0] for row in runs.rows] == ["run"]
        assert sorted(runs.rows[0][1:]) == ["-", "trained"]


def test_revisions_with_aliases_in_their_params_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` refuses aliases, but revisions from before that are still in git."""
    params = tmp_path / "params.yaml"
    params.write_text("runs: {}\nexperiments: {}\nquick: &a {lr: 1}\npaper: *a\n")
    monkeypatch.setattr(Files, "get", lambda _, path: params)
    (old, _) = comparison.sides(ROOT, ("HEAD~1", "HEAD"))
    assert (old.params["quick.lr"], old.params["paper.lr"]) == (1, 1)
    params.write_text("- 1\n")
    with pytest.raises(InputError, match=r"compare: params\.yaml of HEAD~1: found \[1\]"):
        comparison.sides(ROOT, ("HEAD~1", "HEAD"))


def test_a_metric_of_a_run_is_that_of_its_last_step(tmp_path: Path) -> None:
    """A metric that is not logged at the last step is not taken from an earlier step."""
    folder = tmp_path / "reports/list_copy_10/tables/list_copy_10"
    folder.mkdir(parents=True)
    log = {
        "variant": "",
        "seed": [0, 0],
        "step": [0, 1],
        "lr": 0.1,
        "train_loss": [3.0, 1.0],
        "accuracy": [0.5, None],
    }
    pd.DataFrame(log).to_csv(folder / "training.csv", index=False)
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text())
    (run, _) = comparison.sides(tmp_path, ("list_copy_10", "list_copy_10"))
    assert run.metrics["training.train_loss"] == 1.0
    assert math.isnan(run.metrics["training.accuracy"])


def test_show_begins_with_the_claims_that_failed_and_says_why(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml", "stages/train.py", "claims/list_copy_100.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    verdicts = read_verdicts(ROOT / claims_table("list_copy_100"))
    verdicts["outcome"] = "reproduced"
    verdicts.loc[verdicts.index[-2:], "outcome"] = "not reproduced"
    verdicts.loc[verdicts.index[-2:], "why"] = "planted"
    verdicts.loc[verdicts.index[-1], ["passing", "models"]] = ["2", "3"]
    table = tmp_path / claims_table("list_copy_100")
    table.parent.mkdir(parents=True)
    verdicts.to_csv(table, index=False)
    output = toycircuits(tmp_path, "show", "list_copy_100")
    claims = output[output.index("claims of list_copy_100") :]
    assert claims.index("not reproduced  ") < claims.index("\nreproduced  ")
    assert claims.count("why not: planted") == claims.count("not reproduced  ") == 2
    assert "2 of 3" in claims
    assert "list_copy_100_2l_large_reshuffle" in output  # its runs


def test_head_may_end_what_is_shown() -> None:
    command = f"{sys.executable} -c '{CALL}' show list_copy_10 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True,
                          env=environment_of(**SOURCE), text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_the_page_is_named_as_seen_from_where_the_command_is_given(tmp_path: Path) -> None:
    runs = ("linear_regression_h1", "linear_regression_h2")
    output = toycircuits(ROOT / "docs", "compare", *runs, "--out", str(tmp_path / "new/page.html"))
    assert f"training curves: {tmp_path / 'new/page.html'}" in output
    assert "means over models" in output
    assert (tmp_path / "new/page.html").exists()


def test_differences_as_markdown_are_tables_of_three_columns() -> None:
    sides = side("A", "reproduced", 1.0), side("B|C", "not reproduced", 2.0)
    output = comparison.as_markdown(comparison.differences(*sides))
    assert "### params: none differ" in output
    assert "| one: It learns. | reproduced (1.0) | not reproduced (2.0) |" in output
    rows = [line for line in output.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {4}
    same = comparison.as_markdown(comparison.differences(sides[0], sides[0]))
    assert same.count("none differ") == 3


def test_runs_are_compared_as_they_are(tmp_path: Path) -> None:
    a, b = comparison.sides(ROOT, ("linear_regression_h1", "linear_regression_h2"))
    assert (a.params["model.n_heads"], b.params["model.n_heads"]) == (1, 2)
    assert a.metrics["mse_transformer"] > b.metrics["mse_transformer"]
    assert len([*comparison.figures(a, b)]) == 1


def test_doctor_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def _ill(root: Path) -> doctor.Finding:
        raise OSError("no disk")

    def _well(root: Path) -> doctor.Finding:
        return doctor.Finding("tea", "warning", "cold", "make some")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(doctor, "CHECKS", (_ill, _well))
    done = CliRunner().invoke(cli.app, ["doctor"])
    assert done.exit_code == 1
    assert "failure  ill: OSError: no disk" in done.output
    assert "warning  tea: cold\n         make some" in done.output
    monkeypatch.setattr(doctor, "CHECKS", (_well,))
    assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == 0


def test_doctor_looks_at_this_machine() -> None:
    findings = [check(ROOT) for check in doctor.CHECKS if check.__name__ != "_results"]
    assert {finding.what: finding.state for finding in findings}["torch"] == "ok"
    assert [finding for finding in findings if finding.state == "failure"] == []
    assert [
        finding for finding in findings if finding.state == "warning" and not finding.advice
    ] == []


@pytest.mark.slow
def test_doctor_names_a_remote_folder_that_is_not_there(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    assert doctor._remote(copy.folder).detail == "none"
    with (copy.folder / ".dvc/config").open("a") as file:
        file.write(f"    remote = disk\n['remote \"disk\"']\n    url = {tmp_path}/disk\n")
    finding = doctor._remote(copy.folder)
    assert (finding.state, "there is no such folder" in finding.detail) == ("warning", True)
    (tmp_path / "disk").mkdir()
    assert doctor._remote(copy.folder).state == "ok"


def test_doctor_looks_for_the_browser_that_will_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    assert doctor._chrome(ROOT).state == "warning"
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    assert doctor._chrome(ROOT) == doctor.Finding("Chrome", "ok", str(browser))


def test_unforeseen_errors_are_one_line_without_debug(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import toycircuits.core.paths as paths\n"
        "def find_root(root=None): raise ZeroDivisionError('by\\nchance')\n"
        "paths.find_root = find_root\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    output = toycircuits(ROOT, "fresh", code=70, PYTHONPATH=path)
    line = "error: ZeroDivisionError: by chance; `toycircuits --debug ...` shows where\n"
    assert output == line
    assert "Traceback" in toycircuits(ROOT, "--debug", "fresh", code=1, PYTHONPATH=path)


def test_help_is_there_for_all_and_loads_no_torch() -> None:
    code = "import sys, toycircuits.cli; print(sorted({'torch', 'pandas', 'dvc'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment_of(**SOURCE), check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "[]\n"
    output = CliRunner().invoke(cli.app, ["--help"]).output
    assert "Exit codes" in output
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert command.callback.__doc__, name
        assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0


def test_shells_complete_it() -> None:
    script = toycircuits(ROOT, _TOYCIRCUITS_COMPLETE="source_bash", code=0)
    assert "_completion" in script
