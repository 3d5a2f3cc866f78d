"""The page for readers who install nothing: what stands in it, and that a browser shows it."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as driver
import pandas as pd
import plotly.graph_objects as go
import pytest
from browser import Chromium
from plotly.offline import get_plotlyjs
from project import ROOT

from toycircuits.claims.card import Card
from toycircuits.core.config import InputError
from toycircuits.core.paths import FLOAT_FORMAT
from toycircuits.core.pictures import find_browser
from toycircuits.core.plotting import TEMPLATE
from toycircuits.report import page, section

INDEX = ROOT / "reports/index.html"
HOSTILE = '<script>alert(1)</script> & "quotes" \''


# --- the parts ---


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A figure and a table whose texts would like to be markup."""
    for order, name in enumerate(["second", "first"]):
        figure = go.Figure(go.Scatter(x=[1], y=[2], name=HOSTILE))
        figure.update_layout(title=HOSTILE, width=1000, height=300, meta={"order": 1 - order})
        (tmp_path / f"{name}.json").write_text(figure.to_json())
    rows = [[HOSTILE, "0.123456789", "12345678", "-7"]] * 70
    pd.DataFrame(rows, columns=["a", "b", "c", HOSTILE]).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def made_section(experiment: Path, text: str = HOSTILE, **cells: list[Any]) -> str:
    """A section in which all is called `text`, with a claim of each outcome.

    Args:
        cells: column of the claims -> what stands there in each.
    """
    measured = {"table": "t", "value": "v"}
    claim = {"id": "x", "statement": text, "source": text, "kind": "exact", "measured": measured}
    fields = {"title": text, "question": text, "method": [text], "key_metrics": {}}
    card = Card.parse(fields | {"claims": [claim | {"expected": {"below": 1}}]}, "card")
    row: dict[str, Any] = dict.fromkeys(
        ["statement", "source", "measured", "interval", "expected", "why"], text
    )
    row |= {"kind": "exact", "published": None, "models": 2, "passing": 1}
    rows = [
        row | {"id": outcome.replace(" ", "_"), "outcome": outcome} for outcome in section.MARKS
    ]
    # Written and read, as by the stages: cells become text, and empty ones do not become NaN.
    table = pd.DataFrame(rows).assign(**cells)
    table.to_csv(experiment / "claims.csv", index=False, float_format=FLOAT_FORMAT)
    return section.section(
        "e",
        card,
        section.read_claims(experiment / "claims.csv"),
        section.read_figures(experiment),
        [section.read_shown_table(experiment / "t.csv")],
        {text: json.dumps(text)},
    )


def made_page(
    sections: dict[str, str],
    records: dict[str, Any],
    params: dict[str, Any] | None = None,
    plotly: str = "",
) -> str:
    """The page of `sections`, whose experiments have no runs."""
    no_runs = {"scale": "quick", "runs": {}, "quick": {name: {"data": {}} for name in sections}}
    counts = {name: dict.fromkeys(section.MARKS, 1) for name in sections}
    titles = dict.fromkeys(sections, HOSTILE)
    template = TEMPLATE.to_plotly_json()
    return page.page(sections, titles, counts, records, params or no_runs, plotly, template)


def test_data_never_becomes_markup(experiment: Path) -> None:
    text = made_section(experiment)
    assert "alert(1)" in text
    assert re.findall(r"<script[^>]*>", text) == ['<script type="application/json">'] * 2
    assert text.count("</script>") == 2
    params = {"scale": HOSTILE, "runs": {}, HOSTILE: {"e": {"data": {"seed": HOSTILE}}}}
    hostile = dict.fromkeys(["commit", "processor", "system", "python", "torch", "cores"], HOSTILE)
    dep = {"path": HOSTILE, "md5": HOSTILE + ".dir"}
    told = record(**hostile, gpus=[HOSTILE], deps=[dep], outs=[])
    told["params"] = {"params.yaml": {HOSTILE: params[HOSTILE]}}
    assert page.belonging({"generate@e": told}, params, experiment)
    whole = made_page({"e": text}, {"generate@e": told}, params)
    assert "1 inputs" in whole  # the record stands in it
    assert "stages took" in whole
    assert "<script>alert" not in whole
    assert '<code class="commit"><script>' not in whole  # just the 8 characters of a commit
    # Those of the page's own, and of the section's two figures.
    assert whole.count("<script") == whole.count("</script>") == 1 + 2 + 3


def test_backticks_are_code_and_nothing_else_is(experiment: Path) -> None:
    text = made_section(experiment, "`step < 3` & `b` `")
    code = "<code>step &lt; 3</code> &amp; <code>b</code> `"
    assert f">{code}</h2>" in text
    assert f'<p class="question">{code}</p>' in text
    assert f"<li>{code}</li>" in text
    assert text.count(f"<td>{code} <small>exact") == 3  # statements
    assert text.count(f"<strong>Why not:</strong> {code}</p>") == 3
    assert section.with_code(f"`{HOSTILE}`").count("<") == 2


def test_cells_of_claims_are_shown_as_they_are_written(experiment: Path) -> None:
    published = ["", "49", "7"]
    text = made_section(
        experiment, "t", published=published, passing=[2, None, None], models=[2, 3, 0]
    )
    assert re.findall(r"<td>([^<]*)</td>\n</tr>", text)[:3] == published
    assert re.findall(r"<small>(\d.*) as expected", text) == ["2 of 2 models"]
    one = made_section(experiment, "t", models=[1, 1, 1], passing=[1, 0, None])
    assert re.findall(r"<small>(\d.*) as expected", one) == ["1 of 1 model", "0 of 1 model"]


def test_failing_claims_are_listed_above_the_table(experiment: Path) -> None:
    failed = ["not reproduced", "reproduced", "not reproduced"]
    text = made_section(experiment, "t", outcome=failed, id=["one", "two", "three"])
    (listed,) = re.findall(r'<p class="failed">(.*?)</p>', text, re.DOTALL)
    assert re.findall(r'<a href="#e-claim-(\w+)">(\w+)</a>', listed) == [
        ("one", "one"),
        ("three", "three"),
    ]
    assert re.findall(r'id="e-claim-(\w+)"', text) == ["one", "two", "three"]
    assert text.index(listed) < text.index('<table class="claims">')
    assert 'class="failed"' not in made_section(experiment, "t", outcome=["reproduced"] * 3)


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ({"a": 60.0, "b": 30.0}, "2 stages took 1 min 30 s of processor time on P"),
        (
            {"a": 60.0, "b": None, "c": None},
            "1 of 3 stages took 1 min 0 s of processor time on P, 2 cores, S, Python 3, torch 2; "
            "the times of 2 were not recorded.",
        ),
        ({"a": None, "b": None}, "The times of the stages were not recorded."),
        ({}, "The times of the stages were not recorded."),
    ],
)
def test_times_that_are_not_recorded_are_not_taken_for_none(
    times: dict[str, float | None], shown: str
) -> None:
    records = {name: record(processor_seconds=seconds) for name, seconds in times.items()}
    names = ["scale", "sections", "titles", "counts", "sums", "marks"]
    empty: dict[str, Any] = {name: {} for name in [*names, "style", "script", "plotly", "template"]}
    template = section.environment().get_template("page.html")
    assert f"<p>{shown}" in template.render(**empty, totals=page.totals(records))


def test_stages_without_a_record_count_as_not_recorded(experiment: Path) -> None:
    known = record(params={"params.yaml": {"scale": "quick"}})
    whole = made_page({"e": made_section(experiment, "t")}, {"render@e": known, "publish": known})
    assert "<p>2 of 4 stages took 2.0 s of processor time" in whole  # generate and check are not
    assert "the times of 2 were not recorded.</p>" in whole


def test_provenance_says_what_a_commit_means(experiment: Path) -> None:
    known = record(commit="0123456789abcdef", edited=True)
    whole = made_page({"e": made_section(experiment, "t")}, {"render@e": known})
    assert '<td><code class="commit">01234567</code> <small>edited</small></td>' in whole
    explained = whole.index("need not be part of the history of this repository")
    assert whole.index('id="e-provenance"') < explained < whole.index('<table class="stages">')


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_other_scales_are_said_not_to_compare_most_claims(experiment: Path, scale: str) -> None:
    params = {"scale": scale, "runs": {}, scale: {"e": {"data": {}}}}
    whole = made_page({"e": made_section(experiment, "t")}, {}, params)
    assert ("most claims are not comparable here" in whole) == (scale == "quick")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<<<<<<< HEAD\n{}", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": "\xff"}', "not valid JSON: 'utf-8' codec can't decode byte 0xff in position 7"),
        (b"[]", "found a list; allowed is an object of stages"),
        (b'{"train@a": 3}', "train@a: found 3; allowed is an object"),
    ],
)
def test_records_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "stages.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        page.read_records(tmp_path / "stages.json")
    assert str(error.value).startswith(f"{tmp_path}/stages.json: {message}")
    assert "\n" not in str(error.value)


def test_the_stage_tells_of_records_that_are_none_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("experiments: {}\n")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/stages.json").write_text("[]")
    command = [sys.executable, str(ROOT / "stages/report.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = "error: reports/stages.json: found a list; allowed is an object of stages\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_figures_keep_their_order_and_share_the_template(experiment: Path) -> None:
    figures = section.read_figures(experiment)
    assert [figure.name for figure in figures] == ["first", "second"]
    assert (figures[0].height, figures[0].min_width) == (300, 750)
    content = json.loads(figures[0].content)
    assert content["data"][0]["name"] == HOSTILE
    assert not {"template", "title", "width", "height"} & {*content["layout"]}


def test_long_tables_say_that_they_are_cut(experiment: Path) -> None:
    table = section.read_shown_table(experiment / "t.csv")
    assert (table.total, len(table.rows)) == (70, section.N_ROWS)
    assert table.rows[0] == [HOSTILE, "0.12346", "12345678", "-7"]
    text = made_section(experiment)
    assert "The first 60 of 70 rows" in text


def test_outcomes_are_told_in_words_too(experiment: Path) -> None:
    text = made_section(experiment)
    for outcome, mark in section.MARKS.items():
        assert f"{mark} {outcome}</span>" in text
    assert section.counts(pd.DataFrame({"outcome": ["reproduced", "reproduced"]})) == {
        **{"reproduced": 2, "not reproduced": 0},
        "not comparable": 0,
    }


def record(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"deps": [], "outs": [], "params": {"params.yaml": {"scale": "quick"}}}
    base |= {"seconds": 1.0, "processor_seconds": 1.0, "attempts": 1, "commit": "", "edited": False}
    base |= {"processor": "P", "cores": 2, "system": "S", "python": "3", "torch": "2", "gpus": []}
    return base | changes


@pytest.mark.parametrize(
    ("changes", "belongs"),
    [
        ({}, True),
        ({"deps": [{"path": "file", "md5": "9a0364b9e99bb480dd25e1f0284c8555"}]}, True),
        ({"deps": [{"path": "file", "md5": "00000000000000000000000000000000"}]}, False),
        ({"outs": [{"path": "file", "md5": "00000000000000000000000000000000"}]}, False),
        ({"outs": [{"path": "absent", "md5": "00000000000000000000000000000000"}]}, True),
        ({"outs": [{"path": "folder", "md5": "0000000000000000000000000000000.dir"}]}, True),
        ({"params": {"params.yaml": {"scale": "paper"}}}, False),
        ({"params": {"params.yaml": {"quick.e.lr": 0.1}}}, True),
        ({"params": {"params.yaml": {"quick.e.lr": 0.2}}}, False),
        ({"params": {"params.yaml": {"quick.gone.lr": 0.2}}}, False),
    ],
)
def test_only_records_of_what_stands_here_count(
    tmp_path: Path, changes: dict[str, Any], belongs: bool
) -> None:
    (tmp_path / "file").write_text("content")
    params = {"scale": "quick", "quick": {"e": {"lr": 0.1}}}
    found = page.belonging({"stage": record(**changes)}, params, tmp_path)
    assert ("stage" in found) == belongs


# --- the page in git, in a browser ---

needs_browser = pytest.mark.skipif(not find_browser(), reason="no Chromium")


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
    browser.load(INDEX)
    n_figures = browser.run("document.querySelectorAll('figure').length")
    assert n_figures == len([*ROOT.glob("reports/*/figures/*.png")]) > 50
    assert browser.run("document.querySelectorAll('.js-plotly-plot').length") < n_figures / 2
    for number in range(n_figures):
        figure = f"document.querySelectorAll('figure')[{number}]"
        browser.run(f"{figure}.scrollIntoView()")
        browser.until(
            f"{figure}.querySelector('.js-plotly-plot .main-svg, .js-plotly-plot canvas')"
        )
    outside = [url for url in browser.requested if not url.startswith(("file:", "data:", "blob:"))]
    assert not outside
    assert [url for url in browser.requested if url.startswith("file:")] == [INDEX.as_uri()]
    # The driver of the graphics card, which is none here, says that it is slow.
    told = [said for said in browser.said if said.get("entry", {}).get("level") != "warning"]
    assert not told
    assert browser.run("document.querySelector('[data-title*=loud], [data-title*=tudio]')") is None


@needs_browser
@pytest.mark.slow
def test_the_first_figure_comes_soon(browser: Chromium) -> None:
    """Within 2 s.

    Counted are the seconds for which the page's one thread, which does all, has a core: on an idle
    machine they are those on the clock; on a busy one the clock also counts waiting for a core, to
    which no limit can be set. The best of three tries is that which is disturbed least.
    """
    times = []
    for _ in range(3):
        browser.load(INDEX)
        browser.until("document.querySelector('.js-plotly-plot .main-svg')")
        times.append(browser.processor_seconds())
    assert 0.1 < min(times) < 2


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
    assert any("exceptionDetails" in said for said in browser.said)
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
    (tmp_path / "page.html").write_text(whole.replace('class="stages"', 'class="stages" id="told"'))
    browser.load(tmp_path / "page.html", width)
    lines = "document.querySelector('#told tbody th').getClientRects()[0].height"
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
    found = Chromium()
    first, second = started
    assert first.closed
    assert first.subprocess.poll() is not None
    assert second.subprocess.poll() is None
    found.close()
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
    found = re.search(r'<script type="application/json" id="template">(.*?)</script>', text)
    assert found
    assert json.loads(found[1]) == json.loads(json.dumps(TEMPLATE.to_plotly_json()))
