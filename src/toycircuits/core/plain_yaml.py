"""Load YAML that anybody may have written: only plain values, and nothing large or deep.

Without the limits, a few lines of aliases keep a program busy for ever.
"""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from toycircuits.core.messages import is_control, quoted

# Our own files are far below these limits.
LARGEST, DEEPEST, MOST_VALUES = 1_000_000, 20, 100_000  # characters, nested levels, values in all
LARGEST_INTEGER = 2**256


def parse_yaml(text: str, aliases: bool) -> Any:
    """What the YAML `text` holds: text, numbers, true, false, null, lists and mappings.

    Args:
        aliases: whether anchors, aliases and merge keys are allowed.

    Raises:
        ValueError: one line about the text: it is not valid, is too large or nested too deeply, or
            has something else in it.
    """
    if len(text) > LARGEST:
        raise ValueError(f"found {len(text)} characters; allowed: {LARGEST}")
    try:
        _check_events(text, aliases)
        return _load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise ValueError(f"{line}not valid YAML: {problem}") from None
    except YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None


def _load(text: str) -> Any:
    try:
        return YAML(typ="safe").load(text)
    except ValueError as error:  # a date that does not exist, or a number of 5000 digits
        raise ValueError(f"not valid YAML: {str(error).partition(';')[0]}") from None


def _check_events(text: str, aliases: bool) -> None:
    """Raise a `ValueError` for what `parse_yaml` refuses beside invalid YAML.

    This looks at the events of the parser, which do not repeat what an alias stands for.
    """
    sizes = _Sizes()
    for event in YAML(typ="safe").parse(text):
        problem = _forbidden(event, aliases) or sizes.add(event)
        if problem:
            raise ValueError(f"line {event.start_mark.line + 1}: {problem}")


def _forbidden(event: Any, aliases: bool) -> str:
    """What is wrong with `event` alone; empty if nothing is."""
    anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
    if tag:
        return f"found the tag {quoted(tag)}; allowed: values without tags"
    is_merge = getattr(event, "value", None) == "<<" and not event.style
    if aliases or not (anchor or is_merge):
        return ""
    found = f"the anchor or alias {quoted(anchor)}" if anchor else "the merge key <<"
    hint = "`dvc exp run -S` changes all users of an anchor or none"
    return f"found {found}; write the values out, because {hint}"


class _Sizes:
    """How deep the values of a YAML file are nested, and how many there are."""

    def __init__(self) -> None:
        self._count = 0  # an alias counts as all values that it stands for
        self._open: list[tuple[str | None, int]] = []  # anchor, and the count when it began
        self._anchored: dict[str, int] = {}  # anchor -> number of its values

    def add(self, event: Any) -> str:
        """Take `event` into account; what is wrong now, or the empty text."""
        anchor: str | None = getattr(event, "anchor", None)
        if isinstance(event, AliasEvent):
            if anchor not in self._anchored:
                return f"the alias {quoted(anchor)} stands for nothing before it"
            self._count += self._anchored[anchor]
        elif isinstance(event, CollectionStartEvent):
            self._open.append((anchor, self._count))
            self._count += 1
        elif isinstance(event, CollectionEndEvent):
            anchor, before = self._open.pop()
            if anchor:
                self._anchored[anchor] = self._count - before
        elif hasattr(event, "value"):
            self._count += 1
            if anchor:
                self._anchored[anchor] = 1
        if len(self._open) > DEEPEST:
            return f"nested too deeply; allowed: {DEEPEST} levels"
        if self._count > MOST_VALUES:
            return f"found too many values; allowed: {MOST_VALUES}"
        return ""


def check_plain(values: Any, key: str = "") -> None:
    """Raise a `ValueError` for what YAML allows and we do not need.

    Keys must be printable text. Values must be text without control characters, integers below
    2**256, other numbers, true, false, null, lists or mappings.

    Args:
        key: where `values` stand, for the message.
    """
    place = f"{key}: " if key else ""
    if isinstance(values, dict):
        for name, value in values.items():
            if not isinstance(name, str) or not name.isprintable():
                found = f"found the key {quoted(name)}"
                raise ValueError(f"{place}{found}; allowed keys are printable text")
            check_plain(value, f"{place}{name}")
    elif isinstance(values, list):
        for value in values:
            check_plain(value, key)
    elif isinstance(values, str):
        if any(map(is_control, values)):
            raise ValueError(f"{place}found {quoted(values)}; allowed: no control characters")
    elif isinstance(values, int):
        if abs(values) > LARGEST_INTEGER:
            raise ValueError(f"{place}found an integer of {values.bit_length()} bits; allowed: 256")
    elif values is not None and not isinstance(values, float):
        found = f"found {quoted(str(values))}, of the kind {type(values).__name__}"
        raise ValueError(f"{place}{found}; put it in quotes if you mean text")
