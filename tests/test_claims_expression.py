"""The language of `value:` in claims: it calculates as pandas does, and runs nothing."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toycircuits.claims.card import Measured
from toycircuits.claims.expression import DEEPEST, FUNCTIONS, LONGEST, evaluate, parse
from toycircuits.core.config import InputError

TABLE = pd.DataFrame(
    {
        **{"step": [0, 49, 98], "loss": [2.5, 0.0, -1.0], "key": [True, False, True]},
        **{"run": ["a", "a", "b"], "large": [4 * 10**18, 1, 1]},
    }
)
NAMES = ["step", "loss"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss", [2.5, 0.0, -1.0]),
        ("run", ["a", "a", "b"]),
        (" 2 * step - 1 ", [-1, 97, 195]),
        ("abs(abs(loss) - 0.5)", [2.0, 0.5, 0.5]),
        ("1 - loss**2", [-5.25, 1.0, 0.0]),
        ("-loss / 2 % 1", [0.75, 0.0, 0.5]),
        ("2 + 3 * 4 * loss / 12", [4.5, 2.0, 1.0]),
        ("step + 50000 * (loss < 0.5)", [0, 50049, 50098]),
        ("(step >= 49) & (step % 49 == 0) & key", [False, False, True]),
        ("(loss < 0) | key", [True, False, True]),
        ("key + (loss < 0)", [1, 0, 2]),  # conditions count as 0 and 1
        ("log10(step + 1)", [0.0, np.log10(50), np.log10(99)]),
    ],
)
def test_an_expression_has_a_value_in_each_row(text: str, expected: list[Any]) -> None:
    assert evaluate(parse(text), TABLE).tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("step / loss", [0, np.inf, -98]), ("loss / 0", [np.inf, np.nan, -np.inf])],
)
def test_a_division_by_zero_gives_no_finite_value(text: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(evaluate(parse(text), TABLE), expected)


REFUSED = [  # a text, where the fault is, and what stands there
    ("@print", 1, "@"),
    ("loss @ step", 6, "@"),
    ("`loss`", 1, "`"),
    ("'loss'", 1, "'"),
    ("loss.__class__", 1, "loss.__class__"),
    ("loss.sum()", 1, "loss.sum"),
    ("f'{loss}'", 2, "'"),
    ("__import__('os').system('touch planted')", 12, "'"),
    ("lambda: 1", 7, ":"),
    ("(loss := 1)", 7, ":"),
    ("[x for x in loss]", 1, "["),
    ("loss[0]", 5, "["),
    ("loss; 1", 5, ";"),
    ("loss = 1", 6, "= 1"),
    ("loss if step else 1", 1, "loss if step else 1"),
    ("not key", 1, "not key"),
    ("key and key", 1, "key and key"),
    ("~key", 1, "~"),
    ("loss // 2", 1, "loss // 2"),
    ("step << 2", 1, "step << 2"),
    ("loss is step", 1, "loss is step"),
    ("+loss", 1, "+loss"),
    ("eval(loss)", 1, "eval"),
    ("abs", 1, "abs"),
    ("abs(loss, 1)", 9, ","),
    ("abs(*loss)", 5, "*loss"),
    ("abs(x=loss)", 1, "abs"),
    ("loss + 10**10**10", 12, "10**10"),
    ("9**9**9", 4, "9**9"),
    ("2**loss", 4, "loss"),
    ("loss**11", 7, "11"),
    ("loss / (1 / 0)", 9, "1 / 0"),
    ("loss * 1e400", 8, "1e400"),
    ("loss * 9007199254740993", 8, "9007199254740993"),
    ("1j * loss", 1, "1j"),
    ("True", 1, "True"),
    ("None", 1, "None"),
    ("...", 1, "..."),
    ("yield loss", 1, "yield loss"),
    ("await loss", 1, "await loss"),
    ("\uff4coss", 1, "\uff4c"),
    ("lo\ufb01", 3, "\ufb01"),
    ("loss\n", 5, "\n"),
    ("loss\x00", 5, "\x00"),
    ("0 < loss < 1", 1, "0 < loss < 1"),
    ("(loss", 1, "(loss"),
    ("loss)", 5, ")"),
    ("", 1, "the end"),
]


@pytest.mark.parametrize(("text", "place", "found"), REFUSED)
def test_all_else_is_refused_with_its_place(text: str, place: int, found: str) -> None:
    message = re.escape(f"character {place}: found {found!r}; allowed: ")
    with pytest.raises(ValueError, match=rf"^{message}[^\n]+$"):
        parse(text)
    fields = {"table": "training", "value": text}
    with pytest.raises(InputError, match=r"^m\.value: "):  # `check` reads all claims like this
        Measured.parse(fields, "m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lost", "character 1: found 'lost'; there are: step, loss, key, run, large"),
        ("loss + __debug__", "character 8: found '__debug__'; there are: step"),
        ("run + 1", "character 1: found something else beside +; allowed: numbers"),
        ("run == 1", "character 1: found something else beside ==; allowed: numbers"),
        ("abs(run)", "character 1: found something else beside abs; allowed: numbers"),
        ("key & step", "character 1: found something else beside &; allowed: conditions"),
        ("large * 4", "character 1: the result of * is too large"),
        ("large + large + large", "character 1: the result of + is too large"),
        ("2 * 3", "found no column in it"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        evaluate(parse(text), TABLE)


@pytest.mark.parametrize(
    "text",
    [
        *["-" * (DEEPEST + 1) + "loss", "abs(" * 30 + "loss" + ")" * 30, "loss" + "+loss" * 30],
        *["x" * (LONGEST + 1), "1" * 5000, "(" * 9999, "loss" + " " * 10**6],
    ],
)
def test_long_and_deep_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: \d+$|nested too deeply"):
        parse(text)


def test_parentheses_alone_cost_nothing() -> None:
    assert evaluate(parse("(" * 80 + "loss" + ")" * 80), TABLE).equals(TABLE["loss"])


EXPRESSIONS = st.recursive(
    st.sampled_from([*NAMES, "1", "0.5", "49", "3e2"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/%"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | st.tuples(st.sampled_from([*FUNCTIONS, "-"]), inner).map(lambda t: f"{t[0]}({t[1]})")
        | st.tuples(inner, st.sampled_from("23")).map(lambda t: f"({t[0]})**{t[1]}")
        | st.tuples(inner, st.sampled_from(["<", ">=", "=="]), inner).map(
            lambda t: f"(1 * ({t[0]} {t[1]} {t[2]}))"
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS)
def test_values_are_those_of_pandas(text: str) -> None:
    """`eval` of pandas is the reference: in a test, of expressions that we made ourselves."""
    try:
        ours = evaluate(parse(text), TABLE)
    except ValueError:
        assume(False)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = eval(text, FUNCTIONS | {name: TABLE[name].astype(float) for name in NAMES})
    np.testing.assert_allclose(ours.astype(float), theirs, rtol=1e-12, atol=0)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="ab1 .+-*/%<>=!&|()_e@:'`[]{}\n\\", max_size=30) | st.text(max_size=12))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        parse(text)
    except ValueError as error:
        message = str(error)
    assert message.isprintable()  # a line break is not


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expressions that pandas would run as code, had it been asked to."""
    monkeypatch.chdir(tmp_path)
    planted = ["@pd.io.common.os.system('touch planted')", "loss.to_csv('planted')"]
    planted += ["loss.map(print)", "loss.pipe(eval)", "__builtins__", "loss.plot"]
    for text in planted:
        with pytest.raises(ValueError, match="found"):
            evaluate(parse(text), TABLE)
    assert [*tmp_path.iterdir()] == []
