"""Strategies that give well-formed JSON and CSV of the wrong shape."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

# One value of each kind, and those that code is likely to trip over.
OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 10**30, 0.5, -0.5, 1e300, 5e-324),
    *("", "0", "text", "../../etc", "os", "a/b", "\x1b[31m", "<b>", "\ud800", "none"),
    *([], [1], [[]], ["a", "a"], {}, {"a": 1}, {"": None}),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside of `value`, at any depth."""
    if at:
        yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


@st.composite
def mutated_json(draw: DrawFn, valid: Any) -> Any:
    """`valid` with one or two values deleted, replaced or added, at any depth."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        if not (there := [*places(value)]):
            return draw(st.sampled_from(OTHERS))
        *path, key = draw(st.sampled_from(there))
        parent = value
        for part in path:
            parent = parent[part]
        other = copy.deepcopy(draw(st.sampled_from(OTHERS)))
        match draw(st.sampled_from(["replace", "replace", "delete", "add", "wrap"])):
            case "replace":
                parent[key] = other
            case "delete":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from(["new", "", "a.b", "../x"]))] = other
            case "add":
                parent.insert(key, other)
            case "wrap":
                parent[key] = [parent[key]]
    return value


@st.composite
def mutated_text(draw: DrawFn, valid: Any) -> str:
    """The JSON text of a mutated `valid`, or `valid` as a text that is damaged."""
    text = json.dumps(valid, indent=1)
    match draw(st.sampled_from(["shape"] * 6 + ["cut", "twice", "constant", "deep", "conflict"])):
        case "shape":
            return json.dumps(draw(mutated_json(valid)))
        case "cut":
            return text[: draw(st.integers(0, len(text)))]
        case "twice":
            lines = text.split("\n")
            at = draw(st.integers(1, max(1, len(lines) - 1)))
            return "\n".join([*lines[:at], *lines[at - 1 :]])
        case "constant":
            return text.replace(": ", ": NaN, ", 1)
        case "deep":
            return "[" * 100_000
        case _:
            return conflicting(text, draw(st.integers(0, text.count("\n"))))


@st.composite
def mutated_csv(draw: DrawFn, valid: str) -> str:
    """The CSV text `valid` with a column, row, cell or character that is wrong or missing."""
    rows = [line.split(",") for line in valid.rstrip("\n").split("\n")]
    row = draw(st.integers(0, len(rows) - 1))
    column = draw(st.integers(0, len(rows[0]) - 1))
    other = draw(
        st.sampled_from(
            ["", "text", "nan", "NaN", "inf", "1e999", "-1", "0.5", "True", '"', "\x1b"]
        )
    )

    def joined() -> str:
        return "\n".join(map(",".join, rows)) + "\n"

    match draw(st.integers(0, 10)):
        case 0:
            rows = [[*cells[:column], *cells[column + 1 :]] for cells in rows]
        case 1:
            del rows[row]
        case 2:
            del rows[row][column]
        case 3:
            rows[row][column] = other
        case 4:
            rows[row].insert(column, other)
        case 5:
            rows = [[*cells[:column], other, *cells[column + 1 :]] for cells in rows[:1]] + rows[1:]
        case 6:
            return draw(st.sampled_from(["", "\n", joined().partition("\n")[0] + "\n", ",", "a"]))
        case 7:
            return valid[: draw(st.integers(0, len(valid)))]
        case 8:
            return valid[: row * 3] + "\0" + valid[row * 3 :]
        case 9:
            rows[row][column] = "x" * 200_000
        case _:
            return conflicting(valid, row)
    return joined() if rows else ""


def conflicting(text: str, line: int) -> str:
    """`text` as git leaves it when both sides of a merge changed this line, counted from 0."""
    lines = text.split("\n")
    ours, theirs = lines[line : line + 1], [content + " " for content in lines[line : line + 1]]
    conflict = ["<<<<<<< HEAD", *ours, "=======", *theirs, ">>>>>>> branch"]
    return "\n".join([*lines[:line], *conflict, *lines[line + 1 :]])
