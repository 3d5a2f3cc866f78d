"""Show a reproduction to a person: a live table in a terminal, plain lines elsewhere."""

import re
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dvc_parallel.outcome import State, log_file

# A line of tqdm: a description, the percentage, a bar, and then counts, times, rate and loss.
PROGRESS = re.compile(r"^(?P<description>.*?):?\s+(?P<percent>\d+)%\|[^|]*\|\s*(?P<rest>.*)$")
STYLES: dict[State, str] = {
    **{"unchanged": "dim", "absent": "dim", "restored": "cyan", "pulled": "cyan"},
    **{"remade": "cyan", "cached": "cyan", "running": "", "retried": "yellow"},
    **{"done": "green", "failed": "bold red", "stopped": "yellow", "skipped": "yellow"},
}


def last_line(log: Path, size: int = 4096) -> str:
    """The last line of `log`. If it is a progress bar, the bar itself is left out."""
    lines = last_lines(log, size)
    if not lines:
        return ""
    if not (bar := PROGRESS.match(lines[-1])):
        return lines[-1]
    return f"{bar['description']} {bar['percent']}% {bar['rest']}".strip()


def last_lines(log: Path, size: int = 4096) -> list[str]:
    """The lines in the last `size` bytes of `log`."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


class Display:
    """Shows the state of each stage.

    Args:
        total: number of stages.
        logs: folder with the output of the commands.
    """

    def __init__(self, console: Console, total: int, logs: Path) -> None:
        self._console, self._total, self._logs = console, total, logs
        self._states: dict[str, State] = {}
        self._since: dict[str, float] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def on_change(self, stage: str, state: State, note: str = "") -> None:
        """Print a line about `stage`, unless there was nothing to do for it."""
        self._states[stage] = state
        took, ran = "", stage in self._since
        if state in ("running", "retried"):
            self._since.setdefault(stage, time.monotonic())
        elif stage in self._since:
            took = f" in {_duration(time.monotonic() - self._since.pop(stage))}"
        if state not in ("unchanged", "absent", "skipped"):
            line = Text(f"{state:>8} ", STYLES[state]) + Text(f"{stage}{took}", "")
            self._console.print(line + Text(f": {note}" if note else ""), soft_wrap=True)
        if state == "failed" and ran and (lines := last_lines(log_file(self._logs, stage))[-10:]):
            self._console.print(Text("\n".join(f"         | {line}" for line in lines), "dim"))
            self._console.print(Text(f"         full log: {log_file(self._logs, stage)}", "dim"))
        self.refresh()

    def refresh(self) -> None:
        """Draw the table again."""
        if self._live.is_started:
            self._live.update(self._table())

    def _table(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, expand=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for stage, since in self._since.items():
            log = log_file(self._logs, stage)
            table.add_row(stage, _duration(time.monotonic() - since), Text(last_line(log), "dim"))
        table.add_row(Text(self.summary(), "bold"))
        return table

    def summary(self) -> str:
        """The number of stages in each state, such as `3 done, 1 failed`."""
        counts = Counter(self._states.values())
        waiting = self._total - sum(counts.values())
        names = [(str(state), counts[state]) for state in STYLES if counts[state]]
        return ", ".join(
            f"{count} {name}" for name, count in [*names, ("waiting", waiting)] if count
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
