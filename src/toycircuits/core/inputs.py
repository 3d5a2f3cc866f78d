"""What this process has read of the project, and whether somebody has edited it since."""

import contextlib
import errno
import hashlib
import os
import stat
import sys
from pathlib import Path
from types import FrameType
from typing import TypeAlias

# The hash of the content, or the numbers by which the file system tells that it was written to.
State: TypeAlias = str | tuple[int, ...]

_read: dict[Path, State] = {}
_script: dict[Path, str] = {}  # at most one: the script and the hash of its content


def read_bytes(path: Path | str, limit: int) -> bytes:
    """The content of the regular file at `path`. Devices and pipes might never end.

    Args:
        limit: the largest size that is allowed, in bytes.

    Raises:
        OSError: there is no such file, or it is a folder, device or pipe, or too large.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device, pipe or socket; allowed: a regular file")
    with Path(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"found more than {limit} bytes; allowed: at most {limit}")
    return content


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
    _script.clear()


def note_script() -> bool:
    """Note the script that this process runs; False if it is no longer what the process runs.

    Python has read the script before it could be noted, so the code that runs is compared.
    """
    frame: FrameType | None = sys._getframe()
    while frame and not _is_script(frame):
        frame = frame.f_back
    if frame is None:  # the stage runs as a part of another program
        return True
    path = Path(frame.f_code.co_filename).absolute()
    content = path.read_bytes()
    note(path, content)
    _script[path] = _digest(content)
    try:
        return bool(compile(content, path, "exec", dont_inherit=True) == frame.f_code)
    except (SyntaxError, ValueError):
        return False


def _is_script(frame: FrameType) -> bool:
    code, module = frame.f_code, frame.f_globals.get("__name__")
    return (module, code.co_name) == ("__main__", "<module>") and Path(code.co_filename).exists()


def edited() -> list[Path]:
    """Files that are no longer as this process has read them: its code, and what was noted."""
    states: dict[Path, State] = {path: digest for path, digest in imported().items() if digest}
    return sorted(path for path, state in (states | _read).items() if _differs(path, state))


def imported() -> dict[Path, str]:
    """Source files of the script and of the imported modules of this package -> their SHA-256.

    It is that of the content which was imported, or empty if another tool has loaded the module.
    """
    modules = [module for name, module in [*sys.modules.items()] if _is_ours(name)]
    return _script | {
        Path(module.__file__): getattr(module.__loader__, "digest", "")
        for module in modules
        if module.__file__
    }


def digest_of(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    return _digest(path.read_bytes())


def close_imports(is_closed: bool) -> None:
    """Refuse further imports of this package, or allow them again."""
    for finder in sys.meta_path:
        if hasattr(finder, "is_closed"):  # of `from_source.py`
            finder.is_closed = is_closed


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
