"""What the project's modules import, read from their text."""

import ast
from collections.abc import Mapping
from pathlib import Path

from project import ROOT

SRC = ROOT / "src"


def texts() -> dict[str, str]:
    """Path relative to the project -> text, of every module of the project and of the stages."""
    paths = [*SRC.rglob("*.py"), *(ROOT / "stages").glob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(paths)}


def module_name(path: str) -> str:
    """Dotted name of the module in `path`; that of the folder for an `__init__.py`."""
    parts = Path(path.removeprefix("src/")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class _Imports(ast.NodeVisitor):
    """Collects (module, name) of every import, at any depth, but for those of type checkers.

    The name is None for `import module`.
    """

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.pairs: set[tuple[str, str | None]] = set()

    def visit_If(self, node: ast.If) -> None:
        checking = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.orelse if checking else [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        self.pairs |= {(alias.name, None) for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        start = self.package[: len(self.package) + 1 - node.level] if node.level else []
        module = ".".join([*start, *([node.module] if node.module else [])])
        self.pairs |= {(module, alias.name) for alias in node.names}


def imported(path: str, text: str, known: Mapping[str, str]) -> set[str]:
    """Modules that the code in `text` imports when it runs: dotted names, also of libraries.

    Args:
        path: of the module, relative to the project.
        known: dotted names of the project's modules, by which `from package import module` is
            told from `from module import name`.
    """
    parts = module_name(path).split(".")
    visitor = _Imports(parts if path.endswith("__init__.py") else parts[:-1])
    visitor.visit(ast.parse(text))
    names = set()
    for module, name in visitor.pairs:
        inner = f"{module}.{name}"
        names.add(inner if name and inner in known else module)
    return names


def graph(files: Mapping[str, str]) -> dict[str, set[str]]:
    """Dotted name of each module in `files` (path -> text) -> all modules that it imports."""
    known = {module_name(path): path for path in files}
    return {name: imported(path, files[path], known) for name, path in known.items()}


def reachable(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    """Modules that run when `start` runs, `start` among them; libraries only as far as named."""
    seen, todo = {start}, [start]
    while todo:
        new = imports.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen
