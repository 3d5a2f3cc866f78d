"""`toycircuits cost`: which stages an edit of the code makes stale, and how long they took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.table import Table

from toycircuits.commands.dvc_repo import open_repo
from toycircuits.core import paths, report_paths
from toycircuits.core.config import InputError
from toycircuits.report.provenance import duration, read_records

Stage: TypeAlias = Any  # dvc.stage.Stage, which has no types

PACKAGE = "src/toycircuits/"  # left out in labels of the next two
CORE = "core/*.py"
SLICES = tuple(
    f"experiments/*/{name}"
    for name in ("task.py", "model.py", "ablations.py", "metrics", "figures")
)
FOLDERS = (*(f"{PACKAGE}{name}" for name in ("claims", "report", "commands")), "src/dvc_parallel")
HEADINGS = ("edit of", "readers", "stale", "trainings", "processor time", "untimed")


@dataclass(frozen=True)
class Cost:
    """What an edit of a file or folder costs.

    Attributes:
        readers: names of the stages that read it.
        stale: names of the readers and of all stages that follow them. A stage that follows does
            not run if the results that it reads come out unchanged.
        seconds: processor time of the last runs of the stale stages, as far as it is recorded.
        untimed: how many of the stale stages have no recorded time.
    """

    readers: frozenset[str]
    stale: frozenset[str]
    seconds: float
    untimed: int

    @property
    def trainings(self) -> int:
        """How many of the stale stages train."""
        return sum(name.partition("@")[0] == "train" for name in self.stale)


@dataclass(frozen=True)
class Row:
    """A row of the table: the costs of an edit of any one of the files that `label` names."""

    label: str
    costs: Sequence[Cost]


class Stages:
    """The stages of dvc.yaml, what they read and write, and how long they took.

    Args:
        root: the project folder, an absolute path.

    Raises:
        InputError: DVC refuses dvc.yaml or params.yaml, or the file of records is damaged.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with open_repo(root) as repo:
            self._graph: Any = repo.index.graph  # an edge leads from a stage to one that it needs
            self._reads: dict[Stage, list[Path]] = {
                stage: [Path(dep.fs_path) for dep in stage.deps] for stage in self._graph
            }
            self._writes = [Path(out.fs_path) for stage in self._graph for out in stage.outs]
        file = root / report_paths.RECORDS
        self._records = read_records(file) if paths.exists(file) else {}

    def cost(self, path: Path) -> Cost:
        """What an edit of the file or folder at the absolute `path` costs.

        Raises:
            InputError: a stage writes the file, or the cost depends on what is edited in it.
        """
        if path in (self._root / "params.yaml", self._root / "dvc.yaml"):
            hint = "edit it, and `toycircuits repro --dry` lists the stages that would run"
            raise InputError(f"{path.name}: the cost depends on what you edit in it; {hint}")
        if any(_overlap(path, output) for output in self._writes):
            hint = "name a file or folder of code or claims"
            raise InputError(f"{path}: stages write results there; {hint}")
        readers = [s for s, inputs in self._reads.items() if any(_overlap(path, i) for i in inputs)]
        stale = self._with_followers(readers)
        names = frozenset(map(_name, stale))
        times = [self._records.get(name, {}).get("processor_seconds") for name in names]
        known = [float(seconds) for seconds in times if seconds is not None]
        untimed = len(times) - len(known)
        return Cost(frozenset(map(_name, readers)), names, sum(known), untimed)

    def _with_followers(self, stages: list[Stage]) -> list[Stage]:
        """`stages` and all stages that need them, directly or through others."""
        from dvc.repo.graph import get_subgraph_of_nodes  # here, because DVC loads slowly

        # Of no stages, DVC returns all.
        return [*get_subgraph_of_nodes(self._graph, stages, downstream=True)] if stages else []


def _name(stage: Stage) -> str:
    """The name of a stage in dvc.yaml; a file of `dvc add` has no name, but an address."""
    return str(getattr(stage, "name", None) or stage.addressing)


def _overlap(a: Path, b: Path) -> bool:
    """Whether one path is, or contains, the other."""
    return a.is_relative_to(b) or b.is_relative_to(a)


def costs(root: Path, names: Sequence[Path]) -> list[Row]:
    """The cost of an edit of each of `names`, by default of each part of the project's code.

    Args:
        root: the project folder.
        names: absolute paths of files and folders of the project.

    Raises:
        InputError: a file does not exist, is not in the project, or its cost is not known.
    """
    root = root.resolve()
    stages = Stages(root)
    if not names:
        return [*_parts(root, stages)]
    rows = []
    for path in map(Path.resolve, names):
        if not paths.exists(path) or not path.is_relative_to(root):
            raise InputError(f"{path}: no such file or folder in the project {root}")
        rows.append(Row(path.relative_to(root).as_posix(), [stages.cost(path)]))
    return rows


def _parts(root: Path, stages: Stages) -> Iterator[Row]:
    """Rows about all code: one for all files of a folder that cost the same, or that are alike."""

    def by_name(pattern: str, within: str = "") -> dict[str, Cost]:
        files = [file for file in sorted((root / within).glob(pattern)) if file.stem != "__init__"]
        return {file.relative_to(root / within).as_posix(): stages.cost(file) for file in files}

    for cost_of in (by_name(CORE, PACKAGE), by_name("stages/*.py")):
        names: dict[Cost, list[str]] = {}
        for name, cost in cost_of.items():
            names.setdefault(cost, []).append(name)
        for cost in sorted(names, key=lambda cost: (-len(cost.stale), -len(cost.readers))):
            yield Row(", ".join(names[cost]), [cost])
    alike = [(pattern, by_name(pattern, PACKAGE)) for pattern in SLICES]
    alike += [(pattern, by_name(pattern)) for pattern in (*FOLDERS, "claims/*.yaml")]
    for pattern, cost_of in alike:
        if cost_of:
            yield Row(pattern, [*cost_of.values()])


def _cells(row: Row) -> list[str]:
    """The cells of `row` but its label: ranges where the files cost different amounts."""
    cells = []
    for number in ("readers", "stale", "trainings", "seconds", "untimed"):
        values = [getattr(cost, number) for cost in row.costs]
        counts = [len(value) if isinstance(value, frozenset) else value for value in values]
        ends = [min(counts), max(counts)]
        low, high = map(duration if number == "seconds" else str, ends)
        cells.append(low if low == high else f"{low} to {high}")
    if all(cost.untimed == len(cost.stale) > 0 for cost in row.costs):
        cells[3] = "not recorded"
    return cells


def as_table(rows: Sequence[Row]) -> Table:
    """The costs for a terminal of at least 80 columns."""
    label, *numbers = HEADINGS
    widest = max(len(word) for row in rows for word in row.label.split())
    table = Table(box=None, pad_edge=False)
    table.add_column(label, overflow="fold", min_width=min(widest, 40))
    for heading in numbers:
        max_width = 12 if heading == "processor time" else None  # a range takes two lines
        table.add_column(heading, justify="right", max_width=max_width)
    for row in rows:
        table.add_row(row.label, *_cells(row))
    return table


def as_markdown(rows: Sequence[Row]) -> str:
    """The costs as a table in Markdown, as CONTRIBUTING has it."""
    lines = [list(HEADINGS), ["---", *["---:"] * (len(HEADINGS) - 1)]]
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row.label.split(", "))
        lines.append([names, *_cells(row)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
