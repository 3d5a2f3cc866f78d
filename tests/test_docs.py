"""The documentation works: links lead somewhere, commands and Python run, the site builds."""

import io
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dvc.cli
import pandas as pd
import pytest
import typer
from project import ROOT, environment_of
from ruamel.yaml import YAML

from toycircuits.cli import app

PAGES = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md") for page in ROOT.glob(pattern)
)
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
(USAGE_ERROR,) = typer.BadParameter.__bases__
INLINE = re.compile(r"`((?:toycircuits|make) [^`A-Z]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", BLOCK.sub("", page.read_text()))
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (page.parent / link).exists()] == []


def test_tests_that_a_page_names_exist() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"\]\(\.\./(tests/[^)]+)\): ((?:`\w+`(?:, )?)+)", text)
    assert len(named) > 10
    for path, tests in named:
        code = (ROOT / path).read_text()
        for test in re.findall(r"`(\w+)`", tests):
            assert f"def {test}(" in code, (path, test)


def test_the_table_of_two_layers_is_that_of_the_results() -> None:
    """The page names the commit of its results; a shallow clone does not have it."""
    page = (ROOT / "docs/two_layers.md").read_text()
    (commit,) = set(re.findall(r"commit `(\w+)`", page))
    file = f"{commit}:reports/list_copy_100/summary/batches.csv"
    git = subprocess.run(["git", "show", file], cwd=ROOT, capture_output=True, check=False)
    if git.returncode:
        pytest.skip(git.stderr.decode().strip())
    table = pd.read_csv(io.BytesIO(git.stdout))
    rows = []
    for row in table.to_dict("records"):
        step = f"{row['jump_step']:,.0f}" if row["jump_step"] > 0 else "–"  # noqa: RUF001
        jumped = f"{row['jumped']} of {row['models']}"
        ends = f"{row['lowest']:.3f} to {row['highest']:.3f}"
        norm = "yes" if row["norm"] == "LN" else "no"
        rows.append(f"| {norm} | {row['batches']} | {jumped} | {step} | {ends} |")
    assert re.findall(r"^\| (?:yes|no) \| .*$", page, re.MULTILINE) == rows


def console(page: Path) -> list[str]:
    """The commands in the blocks and sentences of a page, or in a workflow."""
    text = page.read_text()
    if page in WORKFLOWS:
        jobs = YAML(typ="safe").load(text)["jobs"].values()
        return [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    blocks = [block for language, block in BLOCK.findall(text) if language == "console"]
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return commands + INLINE.findall(BLOCK.sub("", text))


@pytest.mark.parametrize("page", [*PAGES, *WORKFLOWS], ids=lambda page: page.name)
def test_commands_exist_and_take_what_they_are_given(page: Path) -> None:
    for command in console(page):
        for part in re.split(r"[|;\n]|&&", command):
            check_command(re.sub(r"^\s*(if|then|else)\s", "", re.sub(r"\s\S*>\S+", "", part)))


def check_command(text: str) -> None:
    """Parse a command; raises as its own parser for an unknown command, option or argument."""
    match shlex.split(text, comments=True):
        case ["toycircuits", *arguments]:
            commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
            names = [word for word in arguments if not word.startswith("-")][:1]
            assert set(names) <= {*commands}
            for name in names:
                rest = arguments[arguments.index(name) + 1 :]
                commands[name].make_context(name, [word for word in rest if word != "--help"])
        case ["dvc", *arguments]:
            dvc.cli.parse_args(arguments)
        case ["make", *targets]:
            made = (ROOT / "Makefile").read_text()
            assert [
                target
                for target in targets
                if "=" not in target and not re.search(rf"^{target}:", made, re.MULTILINE)
            ] == []


def test_the_page_of_commands_has_every_command() -> None:
    table = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(vars(typer.main.get_command(app))["commands"])


def test_the_tree_of_the_readme_names_what_exists_in_few_words() -> None:
    blocks = [block for _, block in BLOCK.findall((ROOT / "README.md").read_text())]
    (tree,) = [block for block in blocks if block.startswith("params.yaml  ")]
    folder = Path()
    for line in tree.splitlines():
        name, words = re.split(r" {2,}", line.strip(), maxsplit=1)
        folder = folder if line.startswith(" ") else Path(name)
        assert (ROOT / folder / (name if line.startswith(" ") else "")).exists(), line
        assert len(words.split()) <= 8, line


@pytest.mark.parametrize(
    "arguments",
    ["toycircuits repor", "toycircuits repro --jobz 2", "dvc exp run --nome x", "make everything"],
)
def test_a_slip_in_a_command_is_found(arguments: str) -> None:
    with pytest.raises((AssertionError, USAGE_ERROR, dvc.cli.DvcParserError)):
        check_command(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page: Path) -> None:
    code = "\n".join(block for name, block in BLOCK.findall(page.read_text()) if name == "python")
    if code:
        environment = environment_of(PYTHONPATH=str(ROOT / "src"))
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


class References(HTMLParser):
    """The addresses in a page of HTML: what it links to, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                (self.links if tag == "a" else self.loaded).add(value)


def test_the_site_is_whole_and_asks_no_other_server(tmp_path: Path) -> None:
    # With --quiet, mkdocs would not count the warnings that --strict turns into errors.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    site = tmp_path / "site"
    done = subprocess.run(
        [*command, str(site)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [page for page in site.rglob("*.html") if "reports" not in page.parts]
    assert {page.stem for page in PAGES} - {page.stem for page in pages} == {"README"}
    for page in pages:
        references = References(page)
        assert [name for name in references.loaded if "//" in name] == [], page.name
        if page.name != "404.html":  # its addresses start at the root of a server
            inside = [name for name in references.links | references.loaded if ":" not in name]
            files = [page.parent / name.partition("#")[0] for name in inside]
            assert [file for file in files if not file.exists()] == [], page.name
    text = (site / "experiments/modular_subtraction.html").read_text()
    claims = pd.read_csv(ROOT / "reports/modular_subtraction/claims.csv")
    for outcome, number in claims["outcome"].value_counts().items():
        assert f"{number} {outcome}" in text
