"""YAML that anybody may have written: read in no time, or refused in one line that says where."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toycircuits.core.config import InputError, read_params, read_yaml
from toycircuits.core.messages import escaped, in_one_line
from toycircuits.core.plain_yaml import DEEPEST, LARGEST, MOST_VALUES

# Each line stands for nine of the line before: 9**9 values.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k: 1}\n" + "".join(f"b{i}: {{<<: *a, x{i}: *a}}\n" for i in range(9))

REFUSED = [
    ("bomb", BOMB, "line 6: found too many values"),
    ("self", "a: &a [*a]", "line 1: the alias 'a' stands for nothing before it"),
    ("deep list", "a: " + "[" * 5000 + "]" * 5000, "line 1: nested too deeply"),
    ("deep map", "{a: " * 5000 + "}" * 5000, "line 1: nested too deeply"),
    ("deep block", "- " * 5000 + "a", "line 1: nested too deeply"),
    ("deep later", "a: 1\nb: " + "[" * 99 + "]" * 99, "line 2: nested too deeply"),
    ("deep and open", "[{" * 200_000, "line 1: nested too deeply"),
    ("complex keys", "? " * 300_000, "line 1: nested too deeply"),
    ("large", f"a: {'x' * LARGEST}", f"found {LARGEST + 3} characters; allowed: {LARGEST}"),
    ("many", f"a: [{'1,' * MOST_VALUES}]", "line 1: found too many values"),
    ("python", "a: 1\nb: !!python/object/apply:os.system [ls]", "line 2: found the tag 'tag:"),
    ("binary", "a: !!binary aGk=", "line 1: found the tag 'tag:yaml.org,2002:binary'"),
    ("set", "a: !!set {x}", "line 1: found the tag"),
    ("float", "a: !!float 1", "line 1: found the tag"),
    ("own tag", "a: !x 1", "line 1: found the tag '!x'"),
    ("date", "a: {b: 2001-01-01}", "a: b: found '2001-01-01', of the kind date; put it in quotes"),
    ("time", "a: 2001-01-01 10:00:00", "a: found '2001-01-01 10:00:00', of the kind datetime"),
    ("no date", "a: 2001-02-30", "not valid YAML: day is out of range"),
    ("bits", f"a: 0x{'f' * 5000}", "a: found an integer of 20000 bits; allowed: 256"),
    ("digits", f"a: {'9' * 6000}", "not valid YAML: Exceeds the limit"),
    ("documents", "a: 1\n---\nb: 2", "line 2: not valid YAML: expected a single document"),
    ("twice", "a: 1\na: 2", 'line 2: not valid YAML: while constructing a mapping found duplicate'),
    ("tab", "a:\n\tb: 1", "line 2: not valid YAML"),
    ("open", "a: 1\nb: [1\nc: 2", "line 3: not valid YAML"),
    ("colours", 'a: {b: "\\x1b[31mred"}', r"a: b: found '\x1b[31mred'; allowed: no control"),
    ("direction", 'a: "\\u202e"', r"a: found '\u202e'; allowed: no control characters"),
    ("bell in a key", '"\\a": 1', r"found the key '\x07'; allowed keys are printable text"),
    ("list as key", "? [1, 2]\n: 3", "found the key (1, 2); allowed keys are printable text"),
    ("number as key", "a: {1: 2}", "a: found the key 1; allowed keys are printable text"),
    ("NUL", "a: \0", "line 1: found a NUL byte"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_dangerous_yaml_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    begin = time.process_time()
    with pytest.raises(InputError) as error:
        read_yaml(path)
    assert time.process_time() - begin < 5
    assert str(error.value).startswith(f"{path}: {message}")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        (MERGED, {"a": {"k": 1}} | {f"b{i}": {"k": 1, f"x{i}": {"k": 1}} for i in range(9)}),
        ("\ufeffa: 1e-3", {"a": 0.001}),
        ("a: on\nb: 012", {"a": "on", "b": 12}),  # YAML 1.2
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("a: é ± ≤ \u00a0", {"a": "é ± ≤ \u00a0"}),
        ("", None),
    ],
)
def test_plain_yaml_is_read(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == value


def test_params_have_no_aliases(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a: 1\nb: &x [1]\nc: *x\n")
    message = r"line 2: found the anchor or alias 'x'; write the values out, because `dvc exp run"
    with pytest.raises(InputError, match=message):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", [b"\xff\xfea\x00", "a: 1".encode("utf-16"), b"a: \xe9"])
def test_other_encodings_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.yaml: not text in UTF-8"):
        read_yaml(tmp_path / "a.yaml")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab01:-?*&!<>|%@`'\"{}[],# \n\t.~é\x1b", max_size=60) | st.text())
def test_any_text_is_plain_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    message = ""
    try:
        depth = depth_of(read_yaml(path))
    except InputError as error:
        message, depth = str(error), 0
    assert "\n" not in message
    assert depth <= DEEPEST


def depth_of(values: Any) -> int:
    """How deep lists and mappings are nested; anything else than plain values is an error."""
    if isinstance(values, dict | list):
        inner = values.values() if isinstance(values, dict) else values
        return 1 + max(map(depth_of, inner), default=0)
    assert values is None or type(values) in (bool, int, float, str)
    return 0


def test_a_message_cannot_move_the_cursor() -> None:
    assert in_one_line("a\x1b[2J\nb\r\u202ec\td") == r"a\x1b[2J b \u202ec d"
    assert escaped("± ≤ é\n\t\u00a0") == "± ≤ é\n\t\u00a0"
