"""JSON that anybody may have written: read, or refused in one line."""

import sys

import pytest

from toycircuits.core import json_text
from toycircuits.core.config import InputError
from toycircuits.core.json_text import DEEPEST, parse_json


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")])
def test_the_allowed_depth_is_always_the_same(pair: tuple[str, str], depth: int) -> None:
    opening, closing = pair
    text = f"nested too deeply; allowed: {DEEPEST} levels; remove it$"
    with pytest.raises(InputError, match=f"^a.json: not valid JSON: {text}"):
        parse_json(opening * depth + "1" + closing * depth, "a.json", "; remove it")


def test_what_is_as_deep_as_allowed_is_read() -> None:
    values = parse_json("[" * DEEPEST + "1" + "]" * DEEPEST, "a.json")
    for _ in range(DEEPEST):
        (values,) = values
    assert values == 1


def test_a_higher_limit_of_python_allows_no_more() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        with pytest.raises(InputError, match="nested too deeply"):
            parse_json("[" * 2000 + "]" * 2000, "a.json")
    finally:
        sys.setrecursionlimit(before)


def test_large_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LARGEST", 3)
    assert parse_json("123", "a.json") == 123
    with pytest.raises(InputError, match="found 4 characters; allowed: 3"):
        parse_json("1234", "a.json")


@pytest.mark.parametrize("text", [r'["\ud800"]', r'{"\uDFFFx": 1}', r'{"a": ["\udc00\ud83d"]}'])
def test_half_of_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"a\.json: not valid JSON: found \\ud[89a-f]\w\w in a"):
        parse_json(text, "a.json")


def test_whole_pairs_and_escaped_backslashes_are_text() -> None:
    assert parse_json(r'["\ud83d\ude00", "\\ud800"]', "a.json") == ["😀", r"\ud800"]
