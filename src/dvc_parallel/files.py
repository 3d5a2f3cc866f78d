"""Files that other processes read or write at any time."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any, TypeAlias

# What the file system says of a file or folder, see `_facts`; empty if it does not exist.
Facts: TypeAlias = tuple[Any, ...]
State: TypeAlias = dict[str, Facts]  # name -> facts; folders that lead to a path end with "/.."
# A file system gives two writes the same time if they are closer together than this, in seconds.
TICK = 0.02
MOST_WAITS = 50  # for a path that somebody writes to all the time
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


def state_of(path: str, root: str) -> State:
    """What the file system says of `path`, of all in it if it is a folder, and of what leads to it.

    Args:
        root: the folder of the project. Folders above it do not count.
    """
    folders = [folder for folder in Path(path).parents if folder.is_relative_to(root)]
    state: State = {f"{folder}/..": _facts(folder) for folder in folders}
    for name in _all_in(path):
        state[name] = _facts(Path(name))
    return state


def settled_state_of(path: str, root: str) -> State:
    """`state_of`, taken when no later write can have the time of an earlier one.

    If `path` was written to a moment ago, this waits.
    """
    state = state_of(path, root)
    for _ in range(MOST_WAITS):
        own = [facts for name, facts in state.items() if facts and not name.endswith("/..")]
        last = max((stamp for facts in own for stamp in facts[2:4]), default=0)
        if not 0 <= time.time_ns() - last < TICK * 1e9:
            break
        time.sleep(TICK)
        state = state_of(path, root)
    return state


def was_written_to(before: State, now: State) -> bool:
    """Whether something of a path was written, replaced, added, removed or moved in between.

    This is so even if it was undone. A folder that leads to the path may get other files: it was
    moved if only the time of its last change differs, and not that of its last entry.
    """
    if before.keys() != now.keys():
        return True
    return any(
        _was_moved(facts, now[name]) if name.endswith("/..") else _was_written(facts, now[name])
        for name, facts in before.items()
    )


def _was_moved(before: Facts, now: Facts) -> bool:
    if not before or not now:
        return before != now
    return before[0] != now[0] or (before[2] == now[2] and before[3] != now[3])


def _was_written(before: Facts, now: Facts) -> bool:
    if not before or not now or before[:3] != now[:3] or before[5] != now[5]:
        return before != now
    # A hard link that comes or goes changes the ctime, too: DVC's cache may give one to another
    # workspace. The hash of the content tells then.
    return before[3] != now[3] and before[4] == now[4]


def _facts(path: Path) -> Facts:
    """Inode, size, mtime, ctime, number of links, and what is known of the content.

    That is the hash of a file with several hard links, and of a link the facts of its target. A
    file that does not exist has no facts.
    """
    try:
        stat = path.lstat()
        content: Any = None
        if S_ISLNK(stat.st_mode):
            target = path.resolve()
            content = (str(target), _facts(target))
        elif S_ISREG(stat.st_mode) and stat.st_nlink > 1:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # or a circle of links
        return ()
    size, links = (0, 0) if S_ISDIR(stat.st_mode) else (stat.st_size, stat.st_nlink)
    return stat.st_ino, size, stat.st_mtime_ns, stat.st_ctime_ns, links, content


def _all_in(path: str) -> Iterator[str]:
    """`path`, and all files and folders in it, in a fixed order."""
    yield path
    if not Path(path).is_dir():
        return
    for folder, folders, files in os.walk(path, followlinks=True, onerror=raise_unless_gone):
        folders[:] = sorted(set(folders) - NO_INPUTS)
        yield from (f"{folder}/{name}" for name in sorted([*folders, *files]))


def raise_unless_gone(error: OSError) -> None:
    """For `os.walk`: raise `error`, unless it means that a folder was just removed or replaced."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
