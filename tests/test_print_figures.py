"""Figures for print: sizes, text of 8 points, and lines for what cannot be drawn."""

import re
import subprocess
import sys
from pathlib import Path

import plotly.express as px
import plotly.graph_objects as go
import pytest
from project import ROOT, environment_of
from test_plotting import needs_chrome

from toycircuits.commands import figures as print_figures
from toycircuits.core.config import InputError, read_params

PARAMS = read_params(ROOT / "params.yaml")
COMMAND = [sys.executable, "-c", "from toycircuits.cli import app; app()", "figures"]


def scatter(**layout: object) -> go.Figure:
    points = {"x": [1, 2, 3], "y": [1, 4, 9], "kind": ["one", "two", "two"]}
    return px.line(points, x="x", y="y", color="kind", title="Squares").update_layout(**layout)


@pytest.mark.parametrize(("said", "meant"), [("column", 3.25), ("page", 6.75), ("4.5", 4.5)])
def test_widths(said: str, meant: float) -> None:
    assert print_figures.inches(said) == meant


@pytest.mark.parametrize("said", ["wide", "0", "-3", "1000", "nan", ""])
def test_widths_that_make_no_figure(said: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--width: found {said!r}; allowed: column")):
        print_figures.inches(said)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the project, with its tables."""
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("here")
def test_figures_are_found_by_experiment_and_by_name() -> None:
    whole = [*print_figures.select(["list_copy_10"], PARAMS)]
    assert "list_copy_10/loss" in whole
    assert len(whole) == len([*ROOT.glob("reports/list_copy_10/figures/*.png")])
    assert [*print_figures.select(["list_copy_10", "list_copy_10/loss"], PARAMS)] == whole
    assert [*print_figures.select(["list_copy_10/loss"], PARAMS)] == ["list_copy_10/loss"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("roots", "roots: found 'roots'; allowed: modular_subtraction, "),
        (
            "list_copy_10/roots",
            "list_copy_10/roots: no such figure; list_copy_10 has attention_sample, ",
        ),
        ("../loss", r"\.\./loss: found '\.\.'; allowed: modular_subtraction, "),
    ],
)
def test_figures_that_are_not_there(name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        print_figures.select([name], PARAMS)


def test_nothing_to_draw_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="reports/modular_subtraction/tables: no tables yet; "):
        print_figures.select([], PARAMS)


@pytest.mark.parametrize("width", [3.25, 6.75])
def test_a_figure_is_laid_out_for_its_width(width: float) -> None:
    """Its text is 8 points high where it is printed, and it keeps its height in a narrow column."""
    before = scatter(width=760, height=440).to_dict()
    fitted = print_figures.fit(go.Figure(before), width, title=False)
    points_per_pixel = width * 72 / fitted.layout.width
    assert fitted.layout.xaxis.title.font.size * points_per_pixel == pytest.approx(8, rel=0.01)
    assert fitted.layout.title.text is None
    assert 0.3 < fitted.layout.height / fitted.layout.width < 1.3
    assert print_figures.fit(go.Figure(before), width, title=True).layout.title.text == "Squares"
    assert scatter(width=760, height=440).to_dict() == before


def test_the_legend_of_a_narrow_figure_is_below() -> None:
    narrow, wide = (print_figures.fit(scatter(), width, title=False) for width in (3.25, 6.75))
    assert narrow.layout.legend.orientation == "h"
    assert wide.layout.legend.orientation is None


def test_crowded_panels_are_noticed() -> None:
    many = px.line(x=[1, 2] * 8, y=[1, 2] * 8, facet_col=[i // 2 for i in range(16)])
    assert print_figures.crowded(print_figures.fit(many, 3.25, title=False))
    assert not print_figures.crowded(print_figures.fit(scatter(), 3.25, title=False))


@needs_chrome
def test_the_command_draws_both_vector_formats(tmp_path: Path) -> None:
    """The page of the PDF, and the SVG, are as wide as asked."""
    for form in ("pdf", "svg"):
        arguments = ("--format", form, "--width", "3.25", "--out", str(tmp_path / "for_print"))
        done = figures("list_copy_10/loss", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"for_print/list_copy_10/loss.{form}\n")
    drawn = tmp_path / "for_print/list_copy_10"
    assert re.search(r'<svg[^>]* width="234\.\d+pt"', (drawn / "loss.svg").read_text())
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+)", (drawn / "loss.pdf").read_bytes())
    assert [float(box) for box in boxes] == [pytest.approx(234, abs=1)]
    assert [path.name for path in drawn.parent.iterdir()] == ["list_copy_10"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format", "gif"], "--format: found 'gif'; allowed: pdf, svg, png"),
        (["--width", "narrow"], "--width: found 'narrow'; allowed: column, page, or 1.5 to 40"),
        (["squares"], "squares: found 'squares'; allowed: modular_subtraction"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    done = figures(*arguments, "--out", str(tmp_path / "for_print"))
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_a_chrome_that_does_not_draw_is_no_bad_input(tmp_path: Path) -> None:
    (tmp_path / "browser").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "browser").chmod(0o755)
    names = ["modular_subtraction/loss", "--out", str(tmp_path / "out")]
    done = figures(*names, BROWSER_PATH=str(tmp_path / "browser"))
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "not written: " in line
    assert "Chrome or Chromium draws the pictures; `toycircuits doctor` looks for it" in line
    assert [*(tmp_path / "out").iterdir()] == []


def figures(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The command, with a limit above the time after which a stuck Chrome is started once more."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment_of(PYTHONPATH=str(ROOT / "src"), **variables),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
