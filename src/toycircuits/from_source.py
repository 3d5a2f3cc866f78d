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
_CODE = sys._getframe().f_code  # of this module


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
    """Finds the modules of this package where Python does.

    Attributes:
        is_closed: whether imports are refused: this process has said that it has read its code.
    """

    is_closed = False

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
    """Let all later imports of this package read its source files.

    The package's `__init__.py` calls this, at whose time Python itself has loaded two modules.

    Raises:
        ImportError: for one of them, Python has run cached bytecode that is not of its source.
    """
    _check(sys.modules[PACKAGE.rstrip(".")], sys._getframe(1).f_code)
    _check(sys.modules[__name__], _CODE)
    # A process may have imported an earlier state of this module, whose finder goes.
    others = [finder for finder in sys.meta_path if type(finder).__name__ != SourceFinder.__name__]
    # Right before Python's own, so that other tools that change imports keep their place.
    place = others.index(PathFinder) if PathFinder in others else len(others)
    sys.meta_path[:] = [*others[:place], SourceFinder(), *others[place:]]


def _check(module: ModuleType, code: CodeType) -> None:
    """Note the hash of the source of `module`, if `code` is what it says."""
    loader, file = module.__loader__, module.__file__
    if type(loader) is not SourceFileLoader or not file:  # a tool that changes imports
        return
    source = loader.get_data(file)
    if compile(source, file, "exec", dont_inherit=True) != code:
        cached = f"remove {module.__cached__}, and run it again"
        raise ImportError(f"{file}: Python has run other code than is in it; {cached}")
    loader.digest = hashlib.sha256(source).hexdigest()  # type: ignore[attr-defined]
