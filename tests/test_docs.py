"""Links in the documentation lead to files that exist, and to tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["results.md", "reliability.md"])
def test_tests_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    named = re.findall(r"\]\(\.\./(tests/[^)]+)\): ((?:`\w+`(?:, )?)+)", text)
    assert len(named) > 10
    for path, tests in named:
        code = (ROOT / path).read_text()
        for test in re.findall(r"`(\w+)`", tests):
            assert f"def {test}(" in code, (path, test)
