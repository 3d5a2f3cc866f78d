"""Read JSON, with one line for whatever is wrong with it."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from toycircuits.core.config import InputError, quoted, read_text

# Our own files are far below these limits.
LARGEST, DEEPEST = 16_000_000, 20  # characters, nested levels


def read_json(path: Path, hint: str = "") -> Any:
    """What the JSON file at `path` holds.

    Args:
        hint: how to get the file again: the end of a message.

    Raises:
        InputError: the file cannot be read, or as `parse_json`.
    """
    return parse_json(read_text(path, hint, 4 * LARGEST), str(path), hint)


def parse_json(text: str, place: str, hint: str = "") -> Any:
    """What the JSON `text` holds.

    Args:
        place: where the text comes from, for messages.
        hint: as in `read_json`.

    Raises:
        InputError: it is not JSON, is too large or nested too deeply, or an object has a key twice,
            or text has half of a surrogate pair. NaN and Infinity are not JSON.
    """
    try:
        return _parse(text)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{place}: not valid JSON: {reason}{hint}") from None


def _parse(text: str) -> Any:
    if len(text) > LARGEST:
        raise ValueError(f"found {len(text)} characters; allowed: {LARGEST}")
    too_deep = ValueError(f"nested too deeply; allowed: {DEEPEST} levels")
    try:
        values = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise too_deep from None
    if _is_deep(values):
        raise too_deep
    if re.search(r"\\u[dD]", text):
        _refuse_surrogates(values)
    return values


def _is_deep(values: Any) -> bool:
    """Whether lists and objects are nested deeper than is allowed."""
    level = [values]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _items(value)]
    return any(isinstance(value, dict | list) for value in level)


def _items(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_surrogates(values: Any) -> None:
    """Raise a `ValueError` for text that no file in UTF-8 can hold."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"found {half} in a text: half of a surrogate pair") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {quoted(twice)} is there twice")
    return values


def _refuse(constant: str) -> Any:
    raise ValueError(f"found {constant}")
