"""Can DVC store results where a project has them? This is known before any command runs."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from dvc_parallel.errors import UsageError


def check_outputs(root: Path, outputs: Iterable[Path]) -> None:
    """Make sure that `outputs` of the project at `root` can be written and stored.

    Raises:
        UsageError: they cannot; the message names the folder that is in the way.
    """
    folders = {folder for output in outputs for folder in output.parents}
    for folder in sorted(folder for folder in folders if folder.is_relative_to(root)):
        place = f"{folder.relative_to(root)}"
        if folder.is_symlink() and folder != root:
            raise UsageError(
                f"{place}: found a link to another folder, and DVC stores nothing behind a link; "
                "make it a folder, or mount the other disk there"
            )
        if os.path.lexists(folder) and not folder.is_dir():
            raise UsageError(f"{place}: found a file; results are written into a folder there")
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{place}: not writable, and results are written there")


def check_writable(folder: Path) -> None:
    """Make sure that a file can be written in `folder`, which is created.

    Raises:
        UsageError: it cannot, for example because the disk is full.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
    except OSError as error:
        raise UsageError(f"{folder}: DVC cannot write there: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
