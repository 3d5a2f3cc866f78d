"""Every write to an input is noticed, also one that was undone; what is no write is not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dvc_parallel.files import settled_state_of, state_of, was_written_to


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file `f`, a file `g` with two hard links, a link `l`, and a folder `in` with a file."""
    (tmp_path / "p/in").mkdir(parents=True)
    for name in ("p/in/a", "p/f", "p/g", "target", "other"):
        (tmp_path / name).write_text("1")
    (tmp_path / "p/l").symlink_to(tmp_path / "target")
    os.link(tmp_path / "p/g", tmp_path / "second")
    return tmp_path


def swap(name: str) -> Callable[[Path], None]:
    """Move a file or folder away, and back."""

    def act(folder: Path) -> None:
        (folder / name).rename(folder / "away")
        (folder / "away").rename(folder / name)

    return act


def rewrite(name: str) -> Callable[[Path], None]:
    """Write other bytes, and then the old ones."""

    def act(folder: Path) -> None:
        for text in ("2", "1"):
            (folder / name).write_text(text)

    return act


def keep_the_time(folder: Path) -> None:
    stat = (folder / "p/g").stat()
    (folder / "p/g").write_text("2")
    os.utime(folder / "p/g", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def retarget(folder: Path) -> None:
    for target in ("other", "target"):
        (folder / "p/l").unlink()
        (folder / "p/l").symlink_to(folder / target)


def add_and_remove(folder: Path) -> None:
    (folder / "p/in/new").touch()
    (folder / "p/in/new").unlink()


@pytest.mark.parametrize(
    ("path", "act"),
    [
        *(("f", rewrite("p/f")), ("f", swap("p/f")), ("f", swap("p"))),
        *(("g", keep_the_time), ("g", swap("p/g")), ("l", retarget), ("l", rewrite("target"))),
        *(("in", rewrite("p/in/a")), ("in", swap("p/in")), ("in", add_and_remove)),
        ("f", lambda folder: (folder / "p/f").unlink()),
        ("new", lambda folder: (folder / "p/new").touch()),
    ],
)
def test_a_write_is_noticed(folder: Path, path: str, act: Callable[[Path], None]) -> None:
    before = settled_state_of(str(folder / "p" / path), str(folder))
    act(folder)
    assert was_written_to(before, state_of(str(folder / "p" / path), str(folder)))


@pytest.mark.parametrize(
    ("path", "act"),
    [
        ("f", lambda folder: (folder / "p/f").read_text()),
        ("f", lambda folder: (folder / "p/new").touch()),
        ("f", lambda folder: swap("other")(folder)),
        ("g", lambda folder: os.link(folder / "second", folder / "third")),
        ("in", lambda folder: (folder / "p/new").mkdir()),
        ("none", lambda folder: None),
    ],
)
def test_what_is_no_write_is_not_taken_for_one(
    folder: Path, path: str, act: Callable[[Path], None]
) -> None:
    before = settled_state_of(str(folder / "p" / path), str(folder))
    act(folder)
    assert not was_written_to(before, state_of(str(folder / "p" / path), str(folder)))
