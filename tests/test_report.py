"""The page for readers who install nothing: what it contains."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_page import HOSTILE, made_page, made_section, record, write_experiment
from project import ROOT

from toycircuits.claims.verdict import OUTCOMES
from toycircuits.core.config import InputError
from toycircuits.report import provenance, section


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A folder with two figures and a table."""
    return write_experiment(tmp_path)


def test_data_never_becomes_markup(experiment: Path) -> None:
    text = made_section(experiment)
    assert "alert(1)" in text
    assert re.findall(r"<script[^>]*>", text) == ['<script type="application/json">'] * 2
    assert text.count("</script>") == 2
    params = {
        "scale": HOSTILE,
        "experiments": {"e": {}},
        "runs": {},
        "released": [],
        HOSTILE: {"e": {"data": {"seed": HOSTILE}}},
    }
    hostile = dict.fromkeys(["commit", "processor", "system", "python", "torch", "cores"], HOSTILE)
    dep = {"path": HOSTILE, "md5": HOSTILE + ".dir"}
    stage_record = record(**hostile, gpus=[HOSTILE], deps=[dep], outs=[])
    stage_record["params"] = {"params.yaml": {HOSTILE: params[HOSTILE]}}
    assert provenance.current_records({"generate@e": stage_record}, params, experiment)
    whole = made_page({"e": text}, {"generate@e": stage_record}, params)
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
def test_stages_without_a_recorded_time_are_counted_apart(
    times: dict[str, float | None], shown: str
) -> None:
    records = {name: record(processor_seconds=seconds) for name, seconds in times.items()}
    names = ["scale", "sections", "titles", "counts", "sums", "marks"]
    empty: dict[str, Any] = {name: {} for name in [*names, "style", "script", "plotly", "template"]}
    template = section.environment().get_template("page.html")
    assert f"<p>{shown}" in template.render(**empty, totals=provenance.totals(records))


def test_stages_without_a_record_count_as_not_recorded(experiment: Path) -> None:
    known = record(params={"params.yaml": {"scale": "quick"}})
    whole = made_page({"e": made_section(experiment, "t")}, {"render@e": known, "another": known})
    assert "<p>2 of 4 stages took 2.0 s of processor time" in whole  # generate and judge are not
    assert "the times of 2 were not recorded.</p>" in whole


def test_provenance_says_what_a_commit_means(experiment: Path) -> None:
    known = record(commit="0123456789abcdef", edited=True)
    whole = made_page({"e": made_section(experiment, "t")}, {"render@e": known})
    assert '<td><code class="commit">01234567</code> <small>edited</small></td>' in whole
    explained = whole.index("need not be part of the history of this repository")
    assert whole.index('id="e-provenance"') < explained < whole.index('<table class="stages">')


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_a_banner_says_that_results_are_not_of_the_paper_scale(
    experiment: Path, scale: str
) -> None:
    params = {"scale": scale, "runs": {}, "released": [], scale: {"e": {"data": {}}}}
    params["experiments"] = {"e": {}}
    whole = made_page({"e": made_section(experiment, "t")}, {}, params)
    for text in (
        "These are results of the quick scale.",
        "most claims are not comparable here",
        "<code>git show f145e75:reports/index.html &gt; paper.html</code>",
        'class="banner"',
    ):
        assert (text in whole) == (scale == "quick"), text


def changed(**changes: Any) -> bytes:
    """A file with one record, in which some fields are changed."""
    return json.dumps({"train@a": record(cmd="true", **changes)}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<<<<<<< HEAD\n{}", "line 1: found the conflict marker '<<<<<<< HEAD' of a git merge"),
        (b'{"a": "\xff"}', "not text in UTF-8: 'utf-8' codec can't decode byte 0xff in position 7"),
        (b'{"a": {}', "not valid JSON: Expecting ',' delimiter: line 1 column 9 (char 8)"),
        (b'{"a": 1, "a": 1}', "not valid JSON: the key 'a' is there twice"),
        (b"[]", "found []; allowed: an object of stages"),
        (b'{"train@a": 3}', "train@a: found 3; "),
        (b'{"train@a": {}}', "train@a.cmd: missing key (and 11 more)"),
        (
            changed(deps=[{"path": "../../etc/passwd", "md5": "0" * 32}]),
            "train@a.deps.0.path: found",
        ),
        (changed(deps=[{"path": "/etc/passwd", "md5": "0" * 32}]), "train@a.deps.0.path: found"),
        (changed(outs=[{"path": "a", "md5": 3}]), "train@a.outs.0.md5: found 3; "),
        (changed(params={"params.yaml": []}), "train@a.params.params.yaml: found []; "),
        (changed(processor_seconds="1"), 'train@a.processor_seconds: found "1"; '),
        (changed(gpus=None), "train@a.gpus: found null; "),
        (changed(new=1), "train@a.new: unknown key; "),
    ],
)
def test_invalid_records(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "stages.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        provenance.read_records(tmp_path / "stages.json")
    assert str(error.value).startswith(f"{tmp_path}/stages.json: {message}")
    assert "\n" not in str(error.value)


def test_the_stage_reports_invalid_records_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("experiments: {}\n")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/stages.json").write_text("[]")
    command = [sys.executable, str(ROOT / "stages/report.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    message = "error: reports/stages.json: found []; allowed: an object of stages; `git checkout`"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(message)


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


def test_every_outcome_has_a_mark_and_words(experiment: Path) -> None:
    text = made_section(experiment)
    for outcome, mark in section.MARKS.items():
        assert f"{mark} {outcome}</span>" in text
    assert tuple(section.MARKS) == OUTCOMES


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
def test_only_records_of_the_present_files_and_settings_count(
    tmp_path: Path, changes: dict[str, Any], belongs: bool
) -> None:
    (tmp_path / "file").write_text("content")
    params = {"scale": "quick", "quick": {"e": {"lr": 0.1}}}
    current = provenance.current_records({"stage": record(**changes)}, params, tmp_path)
    assert ("stage" in current) == belongs


RUN = {"slice": "s", "final": "w"}
PARAMS = {
    **{"scale": "quick", "experiments": {"e": {}, "f": {}}, "released": ["a"]},
    "runs": {
        "a": RUN | {"experiment": "e", "train": {"weight_seeds": [7]}},
        "b": RUN | {"experiment": "e", "scales": {"quick": {"train": {"batch_seeds": [3]}}}},
        "c": RUN | {"experiment": "f"},
    },
    "quick": {
        "e": {"data": {"seed": 5}, "train": {"weight_seeds": [1, 2], "batch_seeds": None}},
        "f": {"data": {}, "train": {"weight_seeds": [4]}},
    },
}


def test_provenance_lists_the_stages_of_an_experiment_and_their_seeds() -> None:
    """A run's own seeds replace those of its experiment. Only released runs have `release`."""
    stages = provenance.stages_of("e", PARAMS)
    assert {stage: provenance.seeds_of(stage, PARAMS) for stage in stages} == {
        "generate@e": "data 5",
        **{"train@a": "weights 7", "train@b": "weights 1, 2; batches 3"},
        **{"release@a": "", "measure@a": "", "measure@b": "", "ablate@a": "", "ablate@b": ""},
        **{"render@e": "", "judge@e": ""},
    }
    assert stages.index("train@b") < stages.index("release@a") < stages.index("measure@a")
    assert provenance.stages_of("f", PARAMS)[1] == "train@c"
    assert "release@c" not in provenance.stages_of("f", PARAMS)


def test_settings_are_those_of_the_experiment_and_the_changes_of_its_runs() -> None:
    settings = section.settings_of(PARAMS, "e")
    assert {name: json.loads(text) for name, text in settings.items()} == {
        "all runs": PARAMS["quick"]["e"],  # type: ignore[index]
        "a": {"train": {"weight_seeds": [7]}},
        "b": {"scales": {"quick": {"train": {"batch_seeds": [3]}}}},
    }
    assert [*section.settings_of(PARAMS, "f")] == ["all runs"]  # run c changes nothing
