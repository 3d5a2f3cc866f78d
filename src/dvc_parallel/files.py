"""Files that other processes may read at any time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
