"""MkDocs hooks: pages may link to any file of the repository.

If a page links to a file outside docs/ (../CONTRIBUTING.md, ../reports/index.html), the site gets
a copy of that file, and Markdown becomes a page. So the same links work on the site and where git
shows the pages, and a strict build finds every broken link. The page of an experiment ends with a
table of its claims.
"""

import csv
import html
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
COLUMNS = ("statement", "published", "measured")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that the pages link to, directly or through each other."""
    waiting = ["README.md", *(DOCS + file.src_uri for file in files.documentation_pages())]
    known = set(waiting)
    files.append(_file("README.md", config))
    while waiting:
        page = waiting.pop()
        for target in _targets(page):
            if target in known:
                continue
            known.add(target)
            if not target.startswith(DOCS) and (ROOT / target).is_file():
                files.append(_file(target, config))
                if target.endswith(".md"):
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between files of the site."""
    uri = page.file.src_uri
    source = uri if page.file.abs_src_path == str(ROOT / uri) else DOCS + uri

    def moved(match: re.Match[str]) -> str:
        target = _resolve(source, match[1])
        if (ROOT / target).is_dir():  # a site shows no list of files
            target = f"{target}/README.md" if (ROOT / target / "README.md").exists() else target
        return posixpath.relpath(target.removeprefix(DOCS), posixpath.dirname(uri) or ".")

    markdown = LINK.sub(moved, markdown)
    claims = ROOT / f"reports/{Path(uri).stem}/claims.csv"
    return markdown + _claims(claims) if claims.exists() else markdown


def _claims(file: Path) -> str:
    """All claims of an experiment with their outcomes, as Markdown."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    counts = Counter(row["outcome"] for row in rows)
    summary = ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())
    head = f"\n{summary}.\n\n| claim | published | measured | outcome |\n|---|---|---|---|\n"
    return head + "".join(
        "| {} | {} | {} | {} |\n".format(
            *(html.escape(row[name]).replace("|", "&#124;") for name in COLUMNS),
            f"**{row['outcome']}**" + (f": {html.escape(row['why'])}" if row["why"] else ""),
        )
        for row in rows
    )


def _file(path: str, config: MkDocsConfig) -> File:
    """A file of the repository, as a file of the site."""
    return File.generated(config, path, abs_src_path=str(ROOT / path))


def _targets(page: str) -> Iterator[str]:
    """The files that a page links to, relative to the repository."""
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        yield _resolve(page, link)


def _resolve(page: str, link: str) -> str:
    """The file that `link` of `page` names, relative to the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
