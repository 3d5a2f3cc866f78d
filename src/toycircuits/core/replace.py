"""Files that stand under their name only when they are complete."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Let the body write a temporary file, which then takes the place of `path` in one step.

    If the body fails, the temporary file is removed and the file at `path` stays as it was. A
    killed process leaves the temporary file behind, and the next one writes over it.

    Args:
        path: the file to write; its folder is created.
        partial: the temporary file, on the same disk as `path`; by default a hidden file beside it.

    Yields:
        `partial`, which the body has to write.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial") if partial is None else partial
    for folder in (path.parent, partial.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error matters more
            partial.unlink(missing_ok=True)
        raise
