"""A file that is replaced is either the old one or the new one, and never half of it."""

from pathlib import Path

import pytest

from toycircuits.core.replace import replacing


def test_the_file_is_replaced_when_the_body_ends(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/file.txt"
    with replacing(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_after_a_failure_the_old_file_is_there_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as partial:
            partial.write_text("ha")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_body_that_writes_nothing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_what_a_killed_process_left_behind_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    (tmp_path / ".file.txt.partial").write_text("left behind, and longer")
    with replacing(path) as partial:
        partial.write_text("new")
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "new"


def test_the_temporary_file_may_be_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a/file.txt"
    with replacing(path, tmp_path / "b/partial") as partial:
        assert partial == tmp_path / "b/partial"
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [*partial.parent.iterdir()] == []
