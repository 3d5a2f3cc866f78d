"""`toycircuits analyse`: the results for somebody's own weights, in a terminal and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from toycircuits.claims.card import shown
from toycircuits.commands.show import COLORS, plain
from toycircuits.core import paths
from toycircuits.core.config import InputError
from toycircuits.core.fast_import import import_transformer_lens

import_transformer_lens()  # the modules below import it, and would do so slowly

from toycircuits.foreign.analysis import PAGE, Analysis, analyse, check_folder  # noqa: E402
from toycircuits.foreign.page import write_page  # noqa: E402


def run_analysis(
    weights: Path, run: str, scale: str, variant: str | None, model: str | None, out: Path
) -> Analysis:
    """The analysis of the file `weights` with the settings of `run`; see `analyse`.

    Raises:
        InputError: as `analyse`, or the tables cannot go to the folder `out`.
    """
    for folder in (paths.REPORTS, paths.ARTIFACTS):
        if out.resolve().is_relative_to(folder.resolve()):
            text = f"found {out}, but {folder}/ is for the project's own results"
            raise InputError(f"--out: {text}; allowed: another folder")
    check_folder(out)  # before the analysis, which takes its time
    return analyse(weights, run, scale=scale, variant=variant, model=model)


def write(analysis: Analysis, folder: Path, with_page: bool) -> list[Path]:
    """Write the tables to `folder`, and with them a page; the paths of all files.

    Raises:
        InputError: as `Analysis.write`.
    """
    files = analysis.write(folder)
    return [*files, write_page(analysis, folder / PAGE)] if with_page else files


def as_tables(analysis: Analysis) -> RenderableType:
    """The metrics and the verdicts for a terminal."""
    variant = f", variant {analysis.variant}" if analysis.variant else ""
    text = f"{analysis.name} as {analysis.run}{variant}, at the scale {analysis.scale}"
    parts: list[RenderableType] = [plain(text)]
    parts += [plain(f"note: {note}") for note in analysis.notes]
    parts += ["", _metrics(analysis), ""]
    if len(analysis.claims):
        parts += [_claims(analysis), ""]
    return Group(*parts, *_left_out(analysis.left_out))


def _metrics(analysis: Analysis) -> Table:
    table = Table(title="metrics", title_justify="left", box=None)
    for name in ("", "these weights", "untrained"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for row in analysis.metrics.to_dict("records"):
        cells = (shown(float(row[name]), 4) for name in ("value", "untrained"))
        table.add_row(plain(row["metric"]), *map(plain, cells))
    return table


def _claims(analysis: Analysis) -> Table:
    """The verdicts. They are about these weights, and not about the models of the run."""
    title = "claims, judged by these foreign weights"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("claim", "verdict", "measured", "expected", "untrained network"):
        table.add_column(name, overflow="fold")
    for row in analysis.claims.to_dict("records"):
        verdict = plain(row["outcome"])
        verdict.stylize(COLORS[row["outcome"]])
        cells = [plain(row[name]) for name in ("measured", "expected", "untrained")]
        table.add_row(plain(row["id"]), verdict, *cells)
    return table


def _left_out(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """One line for each reason why claims were not judged."""
    lines = [f"{len(claims)} not judged: {reason}" for reason, claims in reasons.items()]
    return [*lines, ""]
