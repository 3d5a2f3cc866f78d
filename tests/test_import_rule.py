"""Who may import whom, so that a folder shows what an edit in it costs (CONTRIBUTING.md)."""

import functools
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest
from imports import SRC, graph, module_name, reachable, texts
from project import ROOT, python

# What each part of the project may import, itself aside. Slices see no other slice.
ALLOWED = {
    "core": set[str](),
    "claims": {"core"},
    "report": {"core"},
    "slice": {"core"},
    "stages": {"core", "claims", "report"},
    "dvc_parallel": set[str](),
    "package": {"from_source"},  # every stage imports it; it finds `api` by its name
    "from_source": set[str](),
    "api": {"released", "foreign"},
    "released": {"core", "revisions", "claims", "report"},
    "revisions": {"core", "claims", "report", "git"},
    "foreign": {"core", "claims", "report"},
    "git": {"core"},
    "commands": {
        *("core", "claims", "report", "slice", "dvc_parallel"),
        *("released", "revisions", "git", "foreign"),
    },
    "__main__": {"cli"},
    "cli": {"api", "core", "commands", "released", "revisions"},
}
# These draw figures from tables, and start once for each experiment: seconds earlier without torch.
WITHOUT_TORCH = r"\.figures(\.|$)|^toycircuits\.core\.(plotting|pictures|render|tables)$"
TORCH = ("torch", "transformer_lens")


def part_of(module: str) -> str | None:
    """The part of the project that a module belongs to; None for libraries.

    That of a slice has its name after it, as in "slice list_copy". The template of
    `new-experiment` is a slice, too.
    """
    top, *inner = module.split(".")
    if top in ("dvc_parallel", "stages"):
        return top
    if top != "toycircuits":
        return None
    if inner[:2] == ["commands", "template"]:
        return "slice template"
    if inner[:1] == ["experiments"] and len(inner) > 1:
        return f"slice {inner[1]}"
    return inner[0] if inner else "package"


def forbidden_imports(imports: Mapping[str, set[str]]) -> Iterator[str]:
    for module, names in imports.items():
        importer = part_of(module)
        for name in names:
            imported = part_of(name)
            if imported in (None, importer):
                continue
            assert importer is not None
            if imported.partition(" ")[0] not in ALLOWED.get(importer.partition(" ")[0], set()) or (
                importer.startswith("slice") and imported.startswith("slice")
            ):
                yield f"{module} imports {name}"


def imports_of_torch(imports: Mapping[str, set[str]]) -> Iterator[str]:
    for module in imports:
        if re.search(WITHOUT_TORCH, module):
            for name in reachable(module, imports):
                if name.partition(".")[0] in TORCH:
                    yield f"{module} imports {name}"


def circles(imports: Mapping[str, set[str]]) -> Iterator[str]:
    inside = {module: names & imports.keys() for module, names in imports.items()}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        yield "a circle: " + ", ".join(error.args[1])


def full_init_files(files: Mapping[str, str]) -> Iterator[str]:
    for path, text in files.items():
        if path.endswith("__init__.py") and path != "src/toycircuits/__init__.py" and text:
            yield f"{path} is not empty"


def violations(files: Mapping[str, str]) -> list[str]:
    """All that is wrong with the imports of `files`, by path relative to the project."""
    imports = graph(files)
    return [
        *forbidden_imports(imports),
        *imports_of_torch(imports),
        *circles(imports),
        *full_init_files(files),
    ]


def test_the_project_keeps_the_rule() -> None:
    files = texts()
    parts = {part.partition(" ")[0] for path in files if (part := part_of(module_name(path)))}
    assert set(ALLOWED) <= parts, "a part of the rule is about no module"
    assert parts - set(ALLOWED) == {"experiments"}, "a part without a rule"
    assert violations(files) == []


@functools.cache
def violations_before() -> set[str]:
    """None, unless the test above fails."""
    return set(violations(texts()))


CORE, SLICE = "src/toycircuits/core/new.py", "src/toycircuits/experiments/list_copy/new.py"


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (CORE, "import toycircuits.claims.card", "core.new imports toycircuits.claims.card"),
        (CORE, "def f(): from toycircuits.report import page", "imports toycircuits.report.page"),
        (CORE, "from toycircuits.experiments.list_copy import task", "list_copy.task"),
        (CORE, "from toycircuits.commands.check import validate", "commands.check"),
        (CORE, "from dvc_parallel import worker", "dvc_parallel.worker"),
        (CORE, "from toycircuits import released", "toycircuits.released"),
        (CORE, "from .. import cli", "core.new imports toycircuits.cli"),
        (SLICE, "from toycircuits.experiments.linear_regression import task", "regression.task"),
        (SLICE, "from toycircuits.claims import card", "claims.card"),
        ("src/toycircuits/claims/new.py", "import toycircuits.report.page", "report.page"),
        ("src/toycircuits/report/new.py", "from toycircuits.claims import card", "claims.card"),
        ("src/toycircuits/released.py", "import toycircuits.commands.show", "commands.show"),
        ("src/toycircuits/commands/new.py", "import toycircuits.cli", "toycircuits.cli"),
        ("src/dvc_parallel/new.py", "from toycircuits.core import paths", "core.paths"),
        ("stages/new.py", "from toycircuits.commands import check", "commands.check"),
        ("src/toycircuits/experiments/list_copy/figures/new.py", "import torch", "imports torch"),
        (
            "src/toycircuits/experiments/list_copy/figures/new.py",
            "from toycircuits.core.interventions import Intervention",
            "figures.new imports torch",
        ),
        ("src/toycircuits/core/config.py", "import toycircuits.core.slices", "a circle: "),
        ("src/toycircuits/core/__init__.py", "X = 1", "core/__init__.py is not empty"),
    ],
)
def test_a_planted_violation_is_found(path: str, text: str, message: str) -> None:
    files = texts()
    planted = files | {path: files.get(path, "") + f"\n{text}\n"}
    new = set(violations(planted)) - violations_before()
    assert [line for line in new if message in line], new


@pytest.mark.parametrize(
    "text",
    [
        "from toycircuits.core import paths",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import toycircuits.cli",
    ],
)
def test_what_is_allowed_is_not_taken_for_a_violation(text: str) -> None:
    assert set(violations(texts() | {CORE: text})) == violations_before()


def test_importing_the_package_imports_what_every_stage_imports() -> None:
    code = "import sys, toycircuits; print(*(m for m in sys.modules if m.startswith('toyc')))"
    modules = {*python(ROOT, "-c", code, PYTHONPATH=str(SRC)).split()}
    assert modules == {"toycircuits", "toycircuits.from_source"}
