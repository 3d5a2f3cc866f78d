"""Import this package from its source files, and never from Python's cached bytecode.

Python takes cached bytecode for that of a source file if the two agree in size, and in the time of
the last edit to a second. If you edit a file and take the edit back, the bytecode of the edit may
pass for that of the file. A result would then come from other code than DVC has recorded.
"""

import hashlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "toycircuits."


class SourceLoader(SourceFileLoader):
    """Compiles the source file at each import.

    Attributes:
        digest: SHA-256 of the source that was imported, in hexadecimal.
    """

    digest = ""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module."""
        source = self.get_data(self.path)
        self.digest = hashlib.sha256(source).hexdigest()
        return self.source_to_code(source, self.path)


class SourceFinder(MetaPathFinder):
    """Finds the modules of this package where Python does."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Python's spec of the module, with our loader; None for the modules of others.

        Args:
            path: where to look; Python's own type of it is no `Sequence`.
        """
        spec = PathFinder.find_spec(fullname, path) if fullname.startswith(PACKAGE) else None
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = SourceLoader(spec.loader.name, spec.loader.path)
        return spec


def import_from_source() -> None:
    """Let all later imports of this package read its source files."""
    # A process may have imported an earlier state of this module, whose finder goes.
    others = [finder for finder in sys.meta_path if type(finder).__name__ != SourceFinder.__name__]
    # Right before Python's own, so that other tools that change imports keep their place.
    place = others.index(PathFinder) if PathFinder in others else len(others)
    sys.meta_path[:] = [*others[:place], SourceFinder(), *others[place:]]
