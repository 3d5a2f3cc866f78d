"""The page in git, in a headless browser."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as driver
import plotly.graph_objects as go
import pytest
from browser import Chromium
from made_page import made_page, made_section, record, write_experiment
from plotly.offline import get_plotlyjs
from project import ROOT

from toycircuits.core.pictures import find_browser
from toycircuits.core.plotting import TEMPLATE

INDEX = ROOT / "reports/index.html"

needs_browser = pytest.mark.skipif(not find_browser(), reason="no Chromium")


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A folder with two figures and a table."""
    return write_experiment(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    browser = Chromium()
    yield browser
    browser.close()


def test_it_is_small_enough() -> None:
    assert 1e6 < INDEX.stat().st_size < 12e6


@needs_browser
@pytest.mark.slow
def test_every_figure_is_drawn_and_nothing_leaves_the_page(browser: Chromium) -> None:
    """The first figure does not wait for the others: it takes less than half of the time of all.

    Both times are processor times of the page's one thread in this load of the page.
    """
    browser.load(INDEX)
    browser.until("document.querySelector('.js-plotly-plot .main-svg')")
    first = browser.processor_seconds()
    n_figures = browser.run("document.querySelectorAll('figure').length")
    assert n_figures == len([*ROOT.glob("reports/*/figures/*.png")]) > 50
    assert browser.run("document.querySelectorAll('.js-plotly-plot').length") < n_figures / 2
    for number in range(n_figures):
        figure = f"document.querySelectorAll('figure')[{number}]"
        browser.run(f"{figure}.scrollIntoView()")
        browser.until(
            f"{figure}.querySelector('.js-plotly-plot .main-svg, .js-plotly-plot canvas')"
        )
    assert 0 < first < browser.processor_seconds() / 2
    outside = [url for url in browser.requested if not url.startswith(("file:", "data:", "blob:"))]
    assert not outside
    assert [url for url in browser.requested if url.startswith("file:")] == [INDEX.as_uri()]
    # Without a graphics card, the driver warns that it is slow.
    errors = [event for event in browser.said if event.get("entry", {}).get("level") != "warning"]
    assert not errors
    assert browser.run("document.querySelector('[data-title*=loud], [data-title*=tudio]')") is None


@needs_browser
@pytest.mark.slow
def test_a_figure_that_cannot_be_drawn_stops_no_other(
    browser: Chromium, experiment: Path, tmp_path: Path
) -> None:
    figure = go.Figure(go.Scatter(x=[1], y=[2]))
    (experiment / "third.json").write_text(figure.update_layout(meta={"order": 2}).to_json())
    text = made_section(experiment, "t")
    broken = text.replace(
        '<script type="application/json">{', '<script type="application/json">', 1
    )
    assert broken != text
    (tmp_path / "page.html").write_text(made_page({"e": broken}, {}, plotly=get_plotlyjs()))
    browser.load(tmp_path / "page.html", height=3000)  # all figures are in the window at once
    browser.until("document.querySelectorAll('.js-plotly-plot .xtick text').length >= 2")
    drawn = "[...document.querySelectorAll('figure')].map(f => !!f.querySelector('.main-svg'))"
    assert browser.run(drawn) == [False, True, True]
    color = "getComputedStyle(document.querySelector('.js-plotly-plot .xtick text')).fill"
    light = browser.run(color)
    browser.run("document.getElementById('theme').click()")
    browser.until(f"{color} !== '{light}'")
    assert any("exceptionDetails" in event for event in browser.said)
    browser.run("localStorage.clear()")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "wraps"), [(1280, False), (360, True)])
def test_names_of_stages_wrap_only_where_there_is_no_room(
    browser: Chromium, experiment: Path, tmp_path: Path, width: int, wraps: bool
) -> None:
    text = made_section(experiment, "t")
    name = "e_of_a_name_that_is_long_enough_to_be_wrapped_on_a_phone"
    whole = made_page({name: text}, {f"render@{name}": record(commit="0123456789")})
    (tmp_path / "page.html").write_text(
        whole.replace('class="stages"', 'class="stages" id="stages"')
    )
    browser.load(tmp_path / "page.html", width)
    lines = "document.querySelector('#stages tbody th').getClientRects()[0].height"
    assert (browser.run(lines) > 60) == wraps
    assert browser.run("getComputedStyle(document.querySelector('.commit')).whiteSpace") == "nowrap"
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_a_browser_that_does_not_answer_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Silent:
        """Answers from its second start on."""

        def __init__(self) -> None:
            self.subprocess = subprocess.Popen(["sleep", "60"])
            self.closed = False
            started.append(self)

        async def open(self) -> None:
            if len(started) == 1:
                await asyncio.sleep(60)

        async def close(self) -> None:
            self.subprocess.kill()
            self.subprocess.wait(10)
            self.closed = True

    monkeypatch.setattr(driver, "Browser", Silent)
    monkeypatch.setattr(driver, "FIRST_ANSWER", 0.2)
    chromium = Chromium()
    first, second = started
    assert first.closed
    assert first.subprocess.poll() is not None
    assert second.subprocess.poll() is None
    chromium.close()
    assert second.closed


@needs_browser
@pytest.mark.slow
def test_it_fits_a_phone(browser: Chromium) -> None:
    browser.load(INDEX, 360, 740)
    browser.run("document.querySelectorAll('figure')[1].scrollIntoView()")
    browser.until("document.querySelector('.js-plotly-plot .main-svg')")
    assert browser.run("document.documentElement.scrollWidth") == 360


@needs_browser
@pytest.mark.slow
def test_light_and_dark(browser: Chromium) -> None:
    color = "getComputedStyle(document.querySelector('.js-plotly-plot .xtick text')).fill"
    back = "getComputedStyle(document.body).backgroundColor"
    seen = []
    for dark in (False, True):
        browser.load(INDEX, dark=dark)
        browser.run("localStorage.clear()")
        browser.run("document.querySelector('figure').scrollIntoView()")
        browser.until("document.querySelector('.js-plotly-plot .xtick text')")
        seen.append((browser.run(back), browser.run(color)))
    assert seen[0][0] == "rgb(255, 255, 255)" != seen[1][0]
    assert seen[0][1] != seen[1][1]
    browser.run("document.getElementById('theme').click()")
    browser.until(f"{color} === '{seen[0][1]}'")
    assert browser.run(back) == seen[0][0]
    browser.run("localStorage.clear()")


@needs_browser
@pytest.mark.slow
def test_it_is_used_by_keyboard(browser: Chromium) -> None:
    browser.load(INDEX)
    focus = "document.activeElement.className || document.activeElement.id"
    browser.press("Tab")
    assert browser.run(focus) == "skip"
    browser.press("Tab")
    assert browser.run(focus) == "theme"
    boxes = "[...document.querySelectorAll('.scroll, pre')]"
    assert browser.run(f"{boxes}.every(box => box.tabIndex === 0)")
    assert browser.run(f"{boxes}.length") > 50


@needs_browser
@pytest.mark.slow
def test_all_figures_are_printed_light_and_as_wide_as_paper(browser: Chromium) -> None:
    browser.load(INDEX, dark=True)
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    figures = browser.run("document.querySelectorAll('figure').length")
    browser.until(f"document.querySelectorAll('.js-plotly-plot').length === {figures}")
    widest = "Math.max(...[...document.querySelectorAll('.js-plotly-plot')].map("
    widest += "plot => plot.querySelector('.main-svg').getBoundingClientRect().width))"
    assert browser.run(widest) < 700
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_the_template_is_that_of_the_figures() -> None:
    text = INDEX.read_text()
    match = re.search(r'<script type="application/json" id="template">(.*?)</script>', text)
    assert match
    assert json.loads(match[1]) == json.loads(json.dumps(TEMPLATE.to_plotly_json()))
