"""Files of claims: what they may say, and the conditions in them."""

import math
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from toycircuits.claims.card import Card, Condition, read_card
from toycircuits.core.config import InputError

MEASURED = {"table": "training", "where": {"run": "a", "step": "last"}, "value": "loss"}


@pytest.mark.parametrize(
    ("condition", "holding", "failing"),
    [
        ({"equal": 3}, [3, 3.0], [3.1, "3"]),
        ({"equal": [1, 2]}, [[1, 2]], [[2, 1], 1]),
        ({"equal": "x"}, ["x"], ["y"]),
        ({"equal": 1.0, "within": 0.1}, [0.95, 1.05], [0.89, 1.11]),
        ({"equal": -2.0, "relative": 0.1}, [-2.15, -1.85], [-2.3, -1.7, 2.0]),
        ({"equal": 100, "factor": 3}, [34, 299], [33, 301]),
        ({"between": [0, 1]}, [0, 1], [-0.1, 1.1]),
        ({"between": [[0.42, 0.52], [0.8, 0.97]]}, [0.42, 0.9], [0.6, 0.98]),
        ({"at_least": 1}, [1], [0.9]),
        ({"at_most": 1}, [1], [1.1]),
        ({"above": 1}, [1.1], [1]),
        ({"below": 1}, [0.9], [1]),
        ({"above": 0, "below": 1}, [0.5], [0, 1]),
    ],
)
def test_conditions(condition: dict[str, Any], holding: list[Any], failing: list[Any]) -> None:
    parsed = Condition.parse(condition, "c")
    assert [parsed.holds(value) for value in holding] == [True] * len(holding)
    nothing = [float("nan"), float("inf"), -float("inf"), None]
    assert [parsed.holds(value) for value in [*failing, *nothing]] == [False] * (len(failing) + 4)
    assert str(parsed)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "found no condition; allowed: equal, between, at_least"),
        ({"within": 1.0}, "found no condition; allowed: equal, between, at_least"),
        ({"above": 1.0, "within": 1.0}, "give only one of them, together with equal"),
        ({"equal": 1, "within": 1.0, "factor": 2.0}, "give only one of them"),
        ({"equals": 1}, "unknown key"),
        ({"between": []}, r"between: found \[\]; allowed: two numbers, or a list of such pairs"),
        ({"between": [3, 1]}, r"between: found \[3.0, 1.0\]; allowed: the lower number first"),
        ({"between": [[0, 1], [3, 2]]}, r"between: found \[3.0, 2.0\]; allowed: the lower number"),
        (
            {"equal": 0, "factor": 2.0},
            "equal: found 0 together with factor; allowed: a number above 0",
        ),
        ({"equal": -2.0, "factor": 2.0}, "equal: found -2.0 together with factor"),
        ({"equal": "x", "factor": 2.0}, 'equal: found "x" together with factor'),
        ({"equal": [1.0], "factor": 2.0}, r"equal: found \[1.0\] together with factor"),
        (
            {"equal": 0.0, "relative": 0.1},
            "equal: found 0.0 together with relative; allowed: a number other than 0",
        ),
        ({"equal": [1], "relative": 0.1}, r"equal: found \[1\] together with relative"),
        (
            {"equal": "x", "within": 1.0},
            'equal: found "x" together with within; allowed: a number or a list',
        ),
        ({"equal": ["x"], "within": 1.0}, r'equal: found \["x"\] together with within'),
        ({"equal": [[1]], "within": 1.0}, r"equal: found \[\[1\]\] together with within"),
        ({"equal": True, "within": 1.0}, "equal: found true together with within"),
        (
            {"equal": []},
            r"equal: found \[\]; allowed: text, a finite number, or a list with",
        ),
        ({"equal": [1.0, math.nan]}, r"equal: found \[1.0, NaN\]; allowed"),
        ({"between": [0, math.inf]}, "found Infinity"),
        ({"below": math.inf}, "found Infinity"),
        ({"equal": "x", "below": 3.0}, 'equal: found "x" together with bounds; allowed: a number'),
        ({"above": 2, "at_most": 2}, "found ≤ 2 and > 2; no number can meet this condition"),
        ({"at_least": 2, "below": 1}, "no number can meet this condition"),
        (
            {"between": [[0, 1], [3, 4]], "above": 1, "below": 3},
            "no number can meet this condition",
        ),
        ({"equal": 3, "above": 3}, "no number can meet this condition"),
        ({"equal": 3, "within": 1.0, "above": 4}, "no number can meet this condition"),
    ],
)
def test_conditions_that_say_nothing(condition: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Condition.parse(condition, "c")


@pytest.mark.parametrize(
    "condition",
    [
        {"at_least": 2, "at_most": 2},
        {"between": [[0, 1], [3, 4]], "above": 1, "at_most": 3},
        {"equal": 3, "within": 1.0, "at_least": 4},
        {"equal": 3, "within": 1.0, "above": 3.5},
        {"equal": 3, "factor": 2.0, "above": 5.5},
        {"equal": -3.0, "relative": 0.5, "at_most": -4.5},
        {"above": -1e-9, "below": 1e-9},
        {"equal": [1.0], "within": 0.0},
    ],
)
def test_conditions_that_few_numbers_meet(condition: dict[str, Any]) -> None:
    assert Condition.parse(condition, "c")


@pytest.mark.parametrize(
    ("condition", "measured", "message"),
    [
        ({"below": 3}, "up", 'below: the measured value is "up"; allowed: a number'),
        ({"between": [0, 1]}, [1], "between: the measured value is [1]; allowed: a number"),
        (
            {"equal": 3, "within": 1.0},
            "up",
            'within: the measured value is "up"; allowed: a number',
        ),
        (
            {"equal": 3, "relative": 0.1},
            [3.0],
            "relative: the measured value is [3.0]; allowed: a number",
        ),
        (
            {"equal": 3, "factor": 2.0},
            "up",
            'factor: the measured value is "up"; allowed: a number',
        ),
        (
            {"equal": [1, 2], "within": 1.0},
            [1, "up"],
            'within: the measured value is [1, "up"]; allowed: numbers',
        ),
    ],
)
def test_only_numbers_can_be_compared_with_a_number(
    condition: dict[str, Any], measured: object, message: str
) -> None:
    with pytest.raises(InputError) as error:
        Condition.parse(condition, "c").holds(measured)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        ([1.04, -2.0], True),
        ([1.0, -2.2], False),
        ([1.0], False),
        ([1.0, -2.0, 0.0], False),
        (1.0, False),
    ],
)
def test_every_number_of_a_list_is_near(measured: object, holds: bool) -> None:
    assert Condition.parse({"equal": [1.0, -2.0], "within": 0.1}, "c").holds(measured) == holds


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"equal": 6, "within": 2}, "6 ± 2"),
        ({"equal": 1.4e-7, "factor": 10}, "1.4e-07 within a factor 10"),
        ({"equal": -3.22, "relative": 0.5}, "-3.22 ± 0.5 of it"),
    ],
)
def test_conditions_in_words(condition: dict[str, float], words: str) -> None:
    assert str(Condition.parse(condition, "c")) == words


CARD: dict[str, Any] = {
    **{"title": "t", "question": "q?", "method": ["m"], "key_metrics": {"loss": MEASURED}},
    "claims": [
        {
            **{"id": "x", "statement": "s", "source": "o", "kind": "exact", "measured": MEASURED},
            "expected": {"below": 3},
        }
    ],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        (
            {"claims": CARD["claims"] * 2},
            "claims: ids found more than once: x; allowed: each id once",
        ),
        ({"key_metric": {}}, "card.yaml.key_metric: unknown key"),
        ({"title": 3}, "card.yaml.title: found 3"),
        (
            {"claims": [CARD["claims"][0] | {"of": "share"}]},
            "passes: give it together with `of: share`, and only then",
        ),
        (
            {"claims": [CARD["claims"][0] | {"kind": "vague"}]},
            "claims.0.kind: found",
        ),
        ({"claims": []}, r"card\.yaml\.claims: found \[\]"),
        (
            {"claims": [CARD["claims"][0] | {"scales": []}]},
            r"claims\.0\.scales: found \[\]",
        ),
        ({"key_metrics": {"claims": MEASURED}}, "key_metrics: found the name claims"),
        *[
            (
                {"claims": [CARD["claims"][0] | {"of": "share", "passes": {"above": 0}} | change]},
                message,
            )
            for change, message in [
                ({"expected": {"at_least": 0}}, "expected: found ≥ 0; every share meets this"),
                (
                    {"expected": {"between": [0, 1]}},
                    "expected: found 0 to 1; every share meets this",
                ),
                ({"expected": {"above": 1}}, "expected: found > 1; no share can meet this"),
                ({"expected": {"equal": "x"}}, "expected: found x; no share can meet this"),
                ({"expected": {"equal": 0.5}}, None),
                ({"expected": {"above": 0}}, None),
                ({"expected": {"at_least": 1}}, None),
            ]
        ],
        (
            {"claims": [CARD["claims"][0] | {"of": "mean", "expected": {"equal": [1, 2]}}]},
            "expected: found 1, 2; no mean can meet this",
        ),
    ],
)
def test_files_of_claims(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "card.yaml"
    with path.open("w") as file:
        YAML().dump(CARD | change, file)
    if message is None:
        assert isinstance(read_card(path), Card)
        return
    with pytest.raises(InputError, match=message) as error:
        read_card(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", r"card\.yaml: line 2: not valid YAML: "),
        (b"title: \xff", r"card\.yaml: not text in UTF-8: "),
        (b"when: 2024-02-31", r"card\.yaml: not valid YAML: day is out of range"),
        (
            b"2024-01-01: x",
            r"card\.yaml: found the key datetime\.date\(2024, 1, 1\); allowed keys are",
        ),
        (b"3: x", r"card\.yaml: found the key 3; allowed keys are printable text"),
        (b"title: {3: x}", r"card\.yaml: title: found the key 3; allowed keys are printable text"),
        (b"", r"card\.yaml: found null"),
    ],
)
def test_files_that_are_no_files_of_claims(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "card.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_card(tmp_path / "card.yaml")
    assert "\n" not in str(error.value)
