"""What becomes of the stages of a reproduction, and whom the schedule informs of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

# unchanged: nothing to do.         absent: nothing to do; outputs are not in the workspace.
# restored, pulled: the same, and absent outputs came from DVC's cache, or from a remote.
# remade: unchanged, but it ran again because a stage needed its absent outputs.
# cached: changed, and its outputs came from DVC's run cache.       done: changed, and it ran.
State: TypeAlias = Literal[
    "unchanged",
    "absent",
    "restored",
    "pulled",
    "remade",
    "cached",
    "running",
    "retried",
    "done",
    "failed",
    "stopped",
    "skipped",
]


def log_file(folder: Path, stage: str) -> Path:
    """The file in `folder` to which the commands of `stage` print."""
    return folder / f"{stage.replace('/', '_')}.log"


@runtime_checkable
class Observer(Protocol):
    """What the schedule informs of each change."""

    def on_change(self, stage: str, state: State, note: str = "") -> None:
        """`stage` is now in `state`."""

    def refresh(self) -> None:
        """A moment has passed."""


@dataclass
class Outcome:
    """How the reproduction ended.

    Attributes:
        states: the last state of each stage, by name.
        not_stored: outputs that could not be stored in DVC's cache.
        signal: the signal that ended the reproduction early, if one did.
    """

    states: dict[str, State] = field(default_factory=dict)
    not_stored: list[str] = field(default_factory=list)
    signal: int | None = None

    def named(self, state: State) -> list[str]:
        """Stages that ended in `state`."""
        return [name for name, last_state in self.states.items() if last_state == state]
