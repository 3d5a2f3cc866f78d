"""The frame of every stage: one line for bad input, and no result of other inputs than recorded.

`toycircuits repro` records the inputs as they were before the command started, and watches them
until the command has read them. `dvc repro` records them as they are when the command has ended. In
both cases the command has to have read just that.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from toycircuits.core import inputs
from toycircuits.core.config import InputError, exit_on_bad_input
from toycircuits.core.replace import replacing

# `toycircuits repro` gives its commands the path of a file in this variable.
READ = "DVC_PARALLEL_READ"


def name_in(stage_name: str) -> str:
    """The name of a run or an experiment in that of a stage; any other text is returned.

    >>> name_in("train@list_copy_10"), name_in("list_copy_10")
    ('list_copy_10', 'list_copy_10')
    """
    return stage_name.rpartition("@")[2]


# The argument of a stage: dvc.yaml gives the name of the stage, and a person may give that of a run
# or an experiment.
Name = Annotated[str, typer.Argument(parser=name_in, metavar="NAME")]


@contextmanager
def stage() -> Iterator[None]:
    """Run the body of a stage: bad input becomes one line, and so do inputs edited meanwhile."""
    inputs.forget()
    try:
        with exit_on_bad_input():
            if not inputs.note_script():
                raise InputError(f"{sys.argv[0]}: edited while the stage started; run it again")
            yield
            refuse_edits()
    finally:
        inputs.close_imports(False)


def all_read(*but: Path) -> None:
    """Tell `toycircuits repro` that this process has read its code, its settings and its inputs.

    From now on, an edit of these does not disturb the stage, and it must not import any more code.

    Args:
        but: inputs that the process goes on reading.
    """
    inputs.close_imports(True)
    if file := os.environ.get(READ):
        with replacing(Path(file)) as partial:
            partial.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in but))


def digest_of(path: Path) -> str:
    """SHA-256 of an input that this process has read, in hexadecimal.

    Raises:
        InputError: it was edited while it was read.
    """
    digest = inputs.digest_of(path)
    if path.absolute() in inputs.edited():
        raise InputError(f"{path}: edited while it was read; run the stage again")
    return digest


def refuse_edits() -> None:
    """End the process if DVC would record other inputs than it has read.

    Raises:
        SystemExit: `dvc repro` runs this stage, and somebody has edited what it has read.
    """
    if READ in os.environ:  # `toycircuits repro` watches the inputs
        return
    if edited := inputs.edited():
        text = "edited while this stage ran; its results are not recorded: run it again"
        print(f"error: {os.path.relpath(edited[0])}: {text}", file=sys.stderr)
        raise SystemExit(1)
