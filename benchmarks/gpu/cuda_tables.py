"""The Markdown file that cuda.py writes: facts, and sections with one table each."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cuda_machine import FAILED


@dataclass
class Section:
    """A table with a title and a text before it.

    Attributes:
        rows: the cells, as texts.
        problems: the rows in which something is outside its tolerance, or has failed.
    """

    title: str
    text: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    problems: set[int] = field(default_factory=set)

    def markdown(self) -> str:
        """The section as text."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{self.text}\n\n{table}"


@dataclass
class Report:
    """A Markdown file that is written anew after every row, so that a killed process leaves it.

    Attributes:
        facts: name -> text, at the top.
    """

    path: Path
    title: str
    facts: Mapping[str, str]
    sections: list[Section] = field(default_factory=list)

    def begin(self, title: str, text: str, columns: Sequence[str]) -> None:
        """Begin a section."""
        self.sections.append(Section(title, text, columns))
        self.write()

    def put(self, place: int, cells: Sequence[object], problem: bool = False) -> None:
        """Set row `place` of the last section, which is one of its rows or the next.

        Args:
            problem: whether one of the cells is outside its tolerance.
        """
        section, texts = self.sections[-1], [as_text(cell) for cell in cells]
        section.rows[place : place + 1] = [texts]
        if problem or any(text.startswith(FAILED) for text in texts):
            section.problems.add(place)
        print(" | ".join(texts), file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Write the file."""
        facts = "\n".join(f"- {name}: {text}" for name, text in self.facts.items())
        parts = [f"# {self.title}", facts, *(section.markdown() for section in self.sections)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    @property
    def problems(self) -> list[str]:
        """The first cells of all rows with a problem."""
        return [
            f"{section.title}: {section.rows[place][0]}"
            for section in self.sections
            for place in sorted(section.problems)
        ]


def as_text(cell: object) -> str:
    """A cell as text: a number with four digits, or with two if it is below a hundredth.

    >>> as_text(12345.6), as_text(12.3456), as_text(0.000123), as_text(0.0), as_text("a|b")
    ('12,346', '12.35', '1.2e-04', '0', 'a/b')
    """
    if not isinstance(cell, float):
        return str(cell).replace("|", "/")
    if 0 < abs(cell) < 0.01:
        return f"{cell:.1e}"
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
