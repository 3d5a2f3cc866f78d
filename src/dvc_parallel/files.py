"""Files that other processes read or write at any time."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A file system gives two writes the same time if they are closer together than this, in seconds.
TICK = 0.02
# Python writes here while a command runs. What it writes is no input.
NO_INPUTS = {"__pycache__"}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace `path` in one step, so that no reader ever sees half a file.

    Yields:
        The name of a new file beside `path`. Write the new content there. It takes the place of
        `path` at the end of the block, or is removed if the block raises.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def state_of(path: str) -> str:
    """A text that changes with every write to the file `path` or to a file in the folder `path`.

    It changes even if a second write restores the content, because it depends on the times that the
    file system keeps. It also depends on the names of the files in a folder.
    """
    digest = hashlib.sha256()
    for name in _files(path):
        digest.update(f"{name} {_times(name)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def settled_state_of(path: str) -> str:
    """`state_of(path)`, taken when no later write can have the time of an earlier one.

    It waits if `path` was written to a moment ago.
    """
    while 0 <= time.time() - _last_write(path) < TICK:
        time.sleep(TICK)
    return state_of(path)


def _files(path: str) -> Iterator[str]:
    """The file `path`, or all files in the folder `path`, in a fixed order."""
    if not Path(path).is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path, followlinks=True, onerror=_raise):
        folders[:] = sorted(set(folders) - NO_INPUTS)
        for file in sorted(files):
            yield f"{folder}/{file}"


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder that was just removed has no files
        raise error


def _times(file: str) -> str:
    """What the file system says of `file`; nothing of a file that does not exist."""
    try:
        stat = Path(file).stat()
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    # A further hard link to a file changes its ctime: DVC's cache may give one to each workspace.
    ctime = stat.st_ctime_ns if stat.st_nlink == 1 else 0
    return f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {ctime}"


def _last_write(path: str) -> float:
    """When a file of `path` was last written to, in seconds since 1970; 0 if there is none."""
    last = 0.0
    for file in _files(path):
        try:
            stat = Path(file).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        last = max(last, stat.st_mtime, stat.st_ctime)
    return last
