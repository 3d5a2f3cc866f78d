"""dvc_parallel is a package of its own, which knows nothing of this project."""

import json
import pkgutil
import sys
from pathlib import Path

from project import ROOT, python

import dvc_parallel

MODULES = [module.name for module in pkgutil.iter_modules(dvc_parallel.__path__, "dvc_parallel.")]
IMPORT_ALL = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([*sys.modules]))
"""


def imported(folder: Path, *names: str) -> set[str]:
    """Top-level names of what a new Python has imported after `names`."""
    modules = json.loads(python(folder, "-c", IMPORT_ALL, *names, PYTHONPATH=str(ROOT / "src")))
    return {module.partition(".")[0] for module in modules}


def test_its_modules_import_nothing_of_toycircuits(tmp_path: Path) -> None:
    assert {"dvc_parallel.worker", "dvc_parallel.bookkeeping"} < {*MODULES}
    assert "toycircuits" not in imported(tmp_path, *MODULES)
    assert "toycircuits" in imported(tmp_path, *MODULES, "toycircuits.core.fast_import")


def test_what_runs_far_from_dvc_uses_the_standard_library_alone(tmp_path: Path) -> None:
    """A worker in a cluster has no DVC, and the two programs start for every command."""
    before = imported(tmp_path)  # what .pth files of this environment import
    for name in ("worker", "supervisor", "fork_server"):
        added = imported(tmp_path, f"dvc_parallel.{name}") - before
        assert added - {"dvc_parallel"} <= sys.stdlib_module_names
        source = (ROOT / "src/dvc_parallel" / f"{name}.py").read_text()
        source = (
            source.replace("from dvc_parallel.files import", "") if name == "worker" else source
        )
        assert "dvc_parallel" not in source.partition('"""\n\n')[2], "it runs without the package"


def test_its_source_does_not_mention_toycircuits() -> None:
    for file in (ROOT / "src/dvc_parallel").glob("*.py"):
        assert "toycircuits" not in file.read_text().lower(), file.name
