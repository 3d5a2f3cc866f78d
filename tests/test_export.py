"""Figures for print: sizes, text of 8 points, and lines for what cannot be drawn."""

import re
import subprocess
import sys
from pathlib import Path

import plotly.express as px
import plotly.graph_objects as go
import pytest
from test_plotting import needs_chrome

from toycircuits import export
from toycircuits.config import InputError

COMMAND = [sys.executable, "-c", "from toycircuits.cli import app; app()", "figures"]


def scatter(**layout: object) -> go.Figure:
    points = {"x": [1, 2, 3], "y": [1, 4, 9], "kind": ["one", "two", "two"]}
    return px.line(points, x="x", y="y", color="kind", title="Squares").update_layout(**layout)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with two figures of one experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    for name in ("params.yaml", "dvc.yaml", "stages/train.py"):  # a project is told by these
        (tmp_path / name).touch()
    for name in ("cubes", "squares"):
        path = export.FIGURES / "powers" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(scatter().to_json())
    return tmp_path


@pytest.mark.parametrize(("said", "meant"), [("column", 3.25), ("page", 6.75), ("4.5", 4.5)])
def test_widths(said: str, meant: float) -> None:
    assert export.inches(said) == meant


@pytest.mark.parametrize("said", ["wide", "0", "-3", "1000", "nan", ""])
def test_widths_that_make_no_figure(said: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--width: found {said!r}; allowed: column")):
        export.inches(said)


@pytest.mark.usefixtures("folder")
def test_figures_are_found_by_experiment_and_by_name() -> None:
    assert [path.stem for path in export.find([])] == ["cubes", "squares"]
    assert [path.stem for path in export.find(["powers", "powers/cubes"])] == ["cubes", "squares"]
    assert [path.stem for path in export.find(["powers/squares"])] == ["squares"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("roots", "roots: found 'roots'; drawn: powers; "),
        ("powers/roots", "powers/roots: no such figure; powers has cubes, squares"),
        ("../powers", r"\.\./powers: found '\.\.'; drawn: powers; "),
    ],
)
def test_figures_that_are_not_there(name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        export.find([name])


def test_nothing_drawn_yet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no figures; `toycircuits repro -s render@EXPERIMENT`"):
        export.find([], tmp_path)


@pytest.mark.parametrize("width", [3.25, 6.75])
def test_a_figure_is_laid_out_for_its_width(width: float) -> None:
    """Its text is 8 points high where it is printed, and it keeps its height in a narrow column."""
    before = scatter(width=760, height=440).to_dict()
    fitted = export.fit(go.Figure(before), width, title=False)
    points_per_pixel = width * 72 / fitted.layout.width
    assert fitted.layout.xaxis.title.font.size * points_per_pixel == pytest.approx(8, rel=0.01)
    assert fitted.layout.title.text is None
    assert 0.3 < fitted.layout.height / fitted.layout.width < 1.3
    assert export.fit(go.Figure(before), width, title=True).layout.title.text == "Squares"
    assert scatter(width=760, height=440).to_dict() == before


def test_the_legend_of_a_narrow_figure_is_below() -> None:
    narrow, wide = (export.fit(scatter(), width, title=False) for width in (3.25, 6.75))
    assert narrow.layout.legend.orientation == "h"
    assert wide.layout.legend.orientation is None


def test_crowded_panels_are_told() -> None:
    many = px.line(x=[1, 2] * 8, y=[1, 2] * 8, facet_col=[i // 2 for i in range(16)])
    assert export.crowded(export.fit(many, 3.25, title=False))
    assert not export.crowded(export.fit(scatter(), 3.25, title=False))


@needs_chrome
def test_the_command_draws_both_vector_formats(folder: Path) -> None:
    """The page of the PDF, and the SVG, are as wide as asked."""
    for form in ("pdf", "svg"):
        command = [*COMMAND, "powers/cubes"]
        command += ["--format", form, "--width", "3.25", "--out", "for_print"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"for_print/powers/cubes.{form}\n"
    svg = (folder / "for_print/powers/cubes.svg").read_text()
    assert re.search(r'<svg[^>]* width="234\.\d+pt"', svg)
    boxes = re.findall(
        rb"/MediaBox \[0 0 ([\d.]+)", (folder / "for_print/powers/cubes.pdf").read_bytes()
    )
    assert [float(box) for box in boxes] == [pytest.approx(234, abs=1)]
    assert [path.name for path in (folder / "for_print").iterdir()] == ["powers"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format", "gif"], "--format: found 'gif'; allowed: pdf, svg, png"),
        (["--width", "narrow"], "--width: found 'narrow'; allowed: column, page, or 1.5 to 40"),
        (["squares"], "squares: found 'squares'; drawn: powers"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], text: str) -> None:
    command = [*COMMAND, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "figures").exists()
