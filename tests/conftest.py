"""For all tests: shapes in signatures are checked, one thread, tiny transformers to order.

And a small finished project that tests share, because reproducing one takes half a minute.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import beartype.typing  # noqa: F401 (SHAPE_CHECKER looks it up)
import jaxtyping
import pytest
import torch
from filelock import FileLock
from project import Project

if TYPE_CHECKING:
    from toycircuits.core.transformer import Transformer, TransformerSettings

# An int may stand for a float, as for mypy. And jaxtyping decorates method by method, while
# beartype knows `Self` in decorated classes only.
SHAPE_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf("
    "is_pep484_tower=True, "
    "hint_overrides=beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})))"
)
jaxtyping.install_import_hook("toycircuits", SHAPE_CHECKER)
torch.set_num_threads(1)
# A shell's background jobs ignore Ctrl-C, and so would all commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    **{"n_layers": 1, "n_heads": 2, "d_model": 4, "d_head": 3, "d_mlp": 5},
    **{"d_vocab": 7, "d_vocab_out": 6, "act_fn": "relu", "normalization": None},
    **{"use_bias": False, "freeze_W_V": False, "freeze_W_O": False},
    "masks": [["1..", "11.", "111"]],
}


@pytest.fixture
def make_settings() -> Callable[..., "TransformerSettings"]:
    """Tiny `TransformerSettings`, with changes."""
    from toycircuits.core.transformer import TransformerSettings

    return lambda **changes: TransformerSettings.parse(TINY | changes, "model")


@pytest.fixture
def make_model(
    make_settings: Callable[..., "TransformerSettings"],
) -> Callable[..., "Transformer"]:
    """A tiny float64 `Transformer` in which nothing trainable, biases included, is 0 or 1."""
    from toycircuits.core.transformer import Transformer

    def make(seed: int = 0, **changes: Any) -> Transformer:
        generator = torch.Generator().manual_seed(seed)
        model = Transformer(make_settings(**changes), generator).double()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.4, generator=generator)
        return model

    return make


@pytest.fixture
def restored_torch() -> Iterator[None]:
    """Torch's process-wide settings, which `prepare` and so each stage changes, set back."""
    from toycircuits.core import device

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(strict)
    device._replaced.clear()


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, str], None]]:
    """A function that mounts a small file system: its folder, and the options that limit it."""
    mounted: list[Path] = []

    def mount(folder: Path, limit: str) -> None:
        folder.mkdir(exist_ok=True)
        command = ("mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(folder))
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system needs root and the right to mount")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of `list_copy_10` after a plain `dvc repro`, committed to git.

    All tests and all workers of pytest-xdist share it, so change only a `copy` of it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return _finished(base / "finished")


def _finished(folder: Path) -> Project:
    """The shared project in `folder`; whoever comes first makes it, the others wait."""
    marker = folder.with_name("finished-marker")
    with FileLock(folder.with_name("finished.lock")):
        if marker.exists():
            return Project.at(folder)
        project = Project(folder, ["list_copy_10"], scm=True)
        assert len(project.repro()) == 9
        project.commit()
        marker.touch()
        return project
