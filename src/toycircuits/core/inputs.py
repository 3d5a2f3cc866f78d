"""What this process has read of the project, and whether somebody has edited it since."""

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import TypeAlias

# The hash of the content, or the numbers by which the file system tells that it was written to.
State: TypeAlias = str | tuple[int, ...]

_read: dict[Path, State] = {}


def note(path: Path | str, content: bytes | None = None) -> None:
    """Remember the state in which this process has read, or is about to read, the file at `path`.

    Nothing is remembered of a file that is absent: whoever reads it will notice.

    Args:
        content: what was read. Without it, call `note` before the file is read; then every later
            write counts as an edit, even one that changes nothing.
    """
    path = Path(path).absolute()
    with contextlib.suppress(OSError):
        _read.setdefault(path, _times(path) if content is None else _digest(content))


def forget() -> None:
    """Forget what was noted: another stage begins in this process."""
    _read.clear()


def edited() -> list[Path]:
    """Files that are no longer as this process has read them: its code, and what was noted."""
    states: dict[Path, State] = {path: digest for path, digest in imported().items() if digest}
    return sorted(path for path, state in (states | _read).items() if _differs(path, state))


def imported() -> dict[Path, str]:
    """Source files of the imported modules of this package -> SHA-256 of what was imported.

    The hash is empty if it is not known: another tool has loaded the module, or Python itself has
    loaded the first two or three.
    """
    modules = [module for name, module in [*sys.modules.items()] if _is_ours(name)]
    return {
        Path(module.__file__): getattr(module.__loader__, "digest", "")
        for module in modules
        if module.__file__
    }


def digest_of(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    return _digest(path.read_bytes())


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "toycircuits"


def _differs(path: Path, state: State) -> bool:
    try:
        now = _times(path) if isinstance(state, tuple) else digest_of(path)
    except OSError:
        return True
    return now != state


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _times(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
