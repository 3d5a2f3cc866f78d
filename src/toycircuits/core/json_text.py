"""Read JSON, with one line for whatever is wrong with it."""

import json
from pathlib import Path
from typing import Any

from toycircuits.core.config import InputError, quoted, read_text


def read_json(path: Path, hint: str = "") -> Any:
    """What the JSON file at `path` holds.

    Args:
        hint: how to get the file again: the end of a message.

    Raises:
        InputError: the file cannot be read, or as `parse_json`.
    """
    return parse_json(read_text(path, hint), str(path), hint)


def parse_json(text: str, place: str, hint: str = "") -> Any:
    """What the JSON `text` holds.

    Args:
        place: where the text comes from, for messages.
        hint: as in `read_json`.

    Raises:
        InputError: it is not JSON, is nested too deeply, or an object has a key twice. NaN and
            Infinity are not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise InputError(f"{place}: not valid JSON: nested too deeply{hint}") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{place}: not valid JSON: {reason}{hint}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {quoted(twice)} is there twice")
    return values


def _refuse(constant: str) -> Any:
    raise ValueError(f"found {constant}")
