"""`dvc exp run -S` changes the one setting that it names: params.yaml has no aliases."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dvc.utils import serialize
from dvc.utils.hydra import apply_overrides
from project import ROOT

from toycircuits.core.config import InputError, read_params, read_yaml

Key = tuple[str, ...]
NEW = {"new": 1}  # what an empty mapping is changed to


def leaves(values: Any, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Key and value of each setting; a list is one setting, and so is an empty mapping."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, (*at, name))
    else:
        yield at, values


def differences(a: Any, b: Any, at: Key = ()) -> list[Key]:
    """Keys at which `a` and `b` differ; 1, 1.0 and true are different."""
    if isinstance(a, dict) and isinstance(b, dict) and a and b:
        names = dict.fromkeys([*a, *b])
        inner = [differences(a.get(name), b.get(name), (*at, name)) for name in names]
        return [key for keys in inner for key in keys]
    return [] if json.dumps(a) == json.dumps(b) else [at]


def other(value: Any) -> Any:
    """A value of the same type that is not `value`."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}_other"
        case list():
            return [*value, *(value[:1] or [1])]
        case dict():
            return NEW
        case _:
            return 1


def set_param(tree: dict[str, Any], key: Key, value: Any, patch: pytest.MonkeyPatch) -> None:
    """Let DVC set one key of `tree`, as `-S` does, without the file.

    To save time, DVC gets only the mapping that holds the key, within those that hold it. It is the
    mapping of `tree` itself, so if other keys share it as an alias, they change as well.
    """
    part: Any = tree
    for name in key[:-1]:
        part = part[name]
    for name in reversed(key[:-1]):
        part = {name: part}

    @contextmanager
    def modify(path: Path) -> Iterator[dict[str, Any]]:
        yield part

    with patch.context() as context:
        context.setitem(serialize.MODIFIERS, ".yaml", modify)
        name = ".".join(key)
        is_new_key = value == NEW  # DVC adds a key to an empty mapping, and never replaces it
        override = f"+{name}.new=1" if is_new_key else f"{name}={json.dumps(value)}"
        apply_overrides("params.yaml", [override])


def test_each_setting_can_be_changed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_yaml(ROOT / "params.yaml")
    settings = [*leaves(before)]
    wrong = {}
    for key, value in settings:
        after = copy.deepcopy(before)
        set_param(after, key, other(value), monkeypatch)
        if (changed := differences(before, after)) != [key]:
            wrong[key] = changed
    assert wrong == {}
    kinds = {type(value) for _, value in settings}
    assert kinds >= {bool, int, float, str, list, type(None)}
    assert len(settings) > 500


def test_an_alias_would_be_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("quick:\n  a: {train: &x {lr: 1}}\n  b: {train: *x}\n")
    before = read_yaml(path)
    after = copy.deepcopy(before)
    set_param(after, ("quick", "a", "train", "lr"), 2, monkeypatch)
    assert len(differences(before, after)) == 2


def test_the_file_is_changed_in_one_setting(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    before = read_params(path)
    key = ("runs", "list_copy_100", "model", "d_model")
    apply_overrides(path, [f"{'.'.join(key)}=9"])
    assert differences(before, read_params(path)) == [key]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: &x {lr: 1}\nb: *x\n", 1, "the anchor or alias 'x'"),
        ("a: &x 1\n", 1, "the anchor or alias 'x'"),
        ("a: 1\nb: &-x {lr: 1}\n", 2, "the anchor or alias '-x'"),
        ("a:\n  - &x [1]\n  - *x\n", 2, "the anchor or alias 'x'"),
        ("a: 1\n<<: {b: 1}\n", 2, "the merge key <<"),
        ("a: {<<: [{b: 1}, {c: 2}]}\n", 1, "the merge key <<"),
    ],
)
def test_aliases_and_merge_keys_are_refused(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_params(path)
    assert str(error.value).startswith(f"{path}: line {line}: found {what}; write the values out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: '&x *x'\n", "a: R&D # 2*3, &x\n", "a: '<<'\n", "a: 2 * 3\n"])
def test_other_uses_of_these_signs_are_allowed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert "a" in read_params(path)
