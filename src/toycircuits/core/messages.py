"""Text for messages: one line, short, and nothing that a terminal would act on."""

import json
import unicodedata


def in_one_line(text: str) -> str:
    r"""`text` without line breaks, its control characters written as escapes such as `\x1b`.

    Without this, text from a file could move the cursor of a terminal or change its colours.
    """
    return escaped(" ".join(text.split()))


def escaped(text: str) -> str:
    r"""`text` with control characters, but no tabs and line breaks, written as escapes.

    >>> escaped("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return "".join(repr(c)[1:-1] if is_control(c) else c for c in text)


def is_control(character: str) -> bool:
    """Whether a terminal may act on `character` instead of showing it."""
    is_plain = character.isprintable() or character in "\n\t"
    return not is_plain and unicodedata.category(character)[0] == "C"


def quoted(value: object) -> str:
    """`value` for a message: in one line of printable characters, and cut to 80 of them."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def short(value: object) -> str:
    """`value` as JSON for a message, cut to 80 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
