"""Edit dvc.lock so that no reader ever sees half of it, which DVC does in place."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.utils.serialize import modify_yaml

from dvc_parallel.files import replacing


@contextmanager
def edited_lock(path: Path, fs: Any) -> Iterator[Any]:
    """The content of dvc.lock at `path`, to edit. The file is replaced in one step at the end.

    Args:
        fs: DVC's file system of the project.
    """
    with replacing(path) as partial:
        if path.exists():
            shutil.copy(path, partial)
        with modify_yaml(str(partial), fs=fs) as lock:
            yield lock
