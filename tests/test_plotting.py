"""A picture that cannot be drawn never loses a number, and the same figure is the same bytes."""

import base64
import json
import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kaleido
import numpy as np
import plotly.graph_objects as go
import psutil
import pytest

from toycircuits.core import pictures
from toycircuits.core.pictures import write_figures
from toycircuits.core.plotting import HEIGHT, SCALE, WIDTH

CHROMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATHS = [os.environ.get("BROWSER_PATH"), *map(shutil.which, CHROMES)]
CHROME = next((path for path in PATHS if path), None)
needs_chrome = pytest.mark.skipif(CHROME is None, reason="Chrome draws the pictures; none is here")


def some_figures() -> dict[str, go.Figure]:
    x = np.linspace(0, 1, 5)
    small = go.Figure(go.Heatmap(z=np.outer(x, x))).update_layout(width=200, height=200)
    return {"line": go.Figure(go.Scatter(x=x, y=x**2)), "small": small}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    return tmp_path / "some" / "json", tmp_path / "other" / "png", tmp_path / "known"


@pytest.fixture
def no_chrome(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("\nKaleido requires Google Chrome\nto be installed, and much advice")

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", fail)


@pytest.mark.usefixtures("no_chrome")
def test_without_chrome_the_numbers_are_safe(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_figures(some_figures(), *folders)
    written = content(folders[0])
    assert set(written) == {"line.json", "small.json"}
    assert json.loads(written["line.json"])["data"][0]["type"] == "scatter"
    note = b"pictures not drawn: Kaleido requires Google Chrome\n"
    assert content(folders[1]) == {"NOT_DRAWN.txt": note}
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("warning: pictures not drawn: Kaleido requires Google Chrome; install")


@pytest.mark.usefixtures("no_chrome")
def test_the_same_figures_are_the_same_bytes_and_keep_their_numbers(
    folders: tuple[Path, Path, Path],
) -> None:
    write_figures(some_figures(), *folders)
    first = content(folders[0])
    write_figures(some_figures(), *folders)
    assert content(folders[0]) == first
    stored = json.loads(first["line.json"])["data"][0]["y"]
    y = np.frombuffer(base64.b64decode(stored["bdata"]), stored["dtype"])
    assert np.array_equal(y, np.linspace(0, 1, 5) ** 2)


@pytest.mark.usefixtures("no_chrome")
def test_nothing_of_an_earlier_drawing_is_left(folders: tuple[Path, Path, Path]) -> None:
    write_figures(some_figures(), *folders)
    (folders[1] / "old.png").touch()
    write_figures({"new": go.Figure()}, *folders)
    assert set(content(folders[0])) == {"new.json"}
    assert set(content(folders[1])) == {"NOT_DRAWN.txt"}


@pytest.mark.usefixtures("no_chrome")
def test_the_figures_handed_in_are_not_changed(folders: tuple[Path, Path, Path]) -> None:
    figures = some_figures()
    write_figures(figures, *folders)
    assert figures["line"].layout.width is None


@pytest.mark.slow
@needs_chrome
def test_pictures_are_drawn_at_their_size_and_the_same_twice(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_figures(some_figures(), *folders)
    first = content(folders[1])
    assert set(first) == {"line.png", "small.png"}, capsys.readouterr().err
    for name, size in (("line", (WIDTH, HEIGHT)), ("small", (200, 200))):
        picture = first[f"{name}.png"]
        assert picture.startswith(b"\x89PNG\r\n")
        width, height = struct.unpack(">II", picture[16:24])
        assert (width, height) == (SCALE * size[0], SCALE * size[1])
    shutil.rmtree(folders[2])
    write_figures(some_figures(), *folders)
    assert content(folders[1]) == first


def png(text: str | None) -> bytes:
    """What looks like a picture."""
    return b"\x89PNG\r\n" + str(text).encode() + b"IEND\xaeB`\x82"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that Kaleido was asked for; a stub draws each figure's own title."""
    asked: list[str] = []

    def draw(specs: list[dict[str, Any]], **kwargs: Any) -> None:
        for spec in specs:
            asked.append(spec["path"].stem)
            spec["path"].write_bytes(png(spec["fig"].layout.title.text))

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", draw)
    return asked


def test_only_figures_that_changed_are_drawn(
    folders: tuple[Path, Path, Path], jobs: list[str]
) -> None:
    figures = some_figures()
    write_figures(figures, *folders)
    assert sorted(jobs) == ["line", "small"]
    jobs.clear()
    first = content(folders[1])
    write_figures(figures, *folders)
    assert jobs == []
    assert content(folders[1]) == first
    figures["line"].update_layout(title_text="new")
    write_figures(figures, *folders)
    assert jobs == ["line"]
    assert content(folders[1]) == first | {"line.png": png("new")}
    assert len(content(folders[2])) == 2, "the picture that the line had before stays for ever"


def test_another_browser_draws_all_anew(
    folders: tuple[Path, Path, Path],
    jobs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser = tmp_path / "browser"
    browser.write_text("one")
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    write_figures(some_figures(), *folders)
    browser.write_text("another")
    write_figures(some_figures(), *folders)
    assert sorted(jobs) == ["line", "line", "small", "small"]


def test_half_a_picture_is_drawn_again(folders: tuple[Path, Path, Path], jobs: list[str]) -> None:
    write_figures(some_figures(), *folders)
    first = content(folders[1])
    for picture in folders[2].iterdir():
        picture.write_bytes(picture.read_bytes()[:-1])
    jobs.clear()
    write_figures(some_figures(), *folders)
    assert sorted(jobs) == ["line", "small"]
    assert content(folders[1]) == first


def test_a_browser_that_draws_nothing_is_named(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(specs: list[dict[str, Any]], **kwargs: Any) -> None:
        for spec in specs:
            spec["path"].touch()

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", draw)
    write_figures(some_figures(), *folders)
    note = b"pictures not drawn: the browser left no picture of line.png, small.png\n"
    assert content(folders[1]) == {"NOT_DRAWN.txt": note}


def test_what_was_not_drawn_is_not_taken_for_a_picture(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, jobs: list[str]
) -> None:
    works = kaleido.write_fig_from_object_sync

    def die(specs: list[dict[str, Any]], **kwargs: Any) -> None:
        works(specs[:1])
        specs[1]["path"].touch()
        raise RuntimeError("the browser is gone")

    with monkeypatch.context() as patch:
        patch.setattr(kaleido, "write_fig_from_object_sync", die)
        write_figures(some_figures(), *folders)
    assert set(content(folders[1])) == {"line.png", "NOT_DRAWN.txt"}
    jobs.clear()
    write_figures(some_figures(), *folders)
    assert set(content(folders[1])) == {"line.png", "small.png"}
    assert "small" in jobs


@needs_chrome
@pytest.mark.parametrize("recovers", [True, False])
def test_a_browser_that_does_not_answer_is_started_once_more(
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recovers: bool,
) -> None:
    browser, starts = tmp_path / "browser", tmp_path / "starts"
    starts.touch()
    answers = f'[ "$(wc -l <{starts})" -gt 1 ] && exec {CHROME} "$@"' if recovers else ""
    version = '[ "$1" = --version ] && exit'
    lines = ["#!/bin/sh", version, f"echo start >>{starts}", answers, "sleep 1000"]
    browser.write_text("\n".join(lines))
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(browser))

    def clock() -> float:
        """Each start that does not answer takes long; nothing else takes any time."""
        number = starts.read_text().count("start")
        return 1000.0 * (min(number, 1) if recovers else number)

    monkeypatch.setattr(pictures, "time", SimpleNamespace(monotonic=clock))
    write_figures(some_figures(), *folders)
    assert starts.read_text().count("start") == 2
    assert (folders[1] / "line.png").exists() == recovers
    assert (folders[1] / "NOT_DRAWN.txt").exists() != recovers
    assert not [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"]
