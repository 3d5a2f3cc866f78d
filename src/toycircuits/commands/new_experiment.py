"""`toycircuits new-experiment`: write a small experiment that works, to start from.

The folder `template/` beside this file holds it.
"""

import contextlib
import keyword
import re
import shutil
import textwrap
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from toycircuits.commands.structure import RESERVED, read_project
from toycircuits.core.config import NAME, SECTIONS, STRUCTURE, InputError, scales
from toycircuits.core.messages import quoted
from toycircuits.core.paths import weights_file
from toycircuits.core.replace import replacing
from toycircuits.core.report_paths import claims_file

TEMPLATE = Path(__file__).with_name("template")


def create(root: Path, name: str) -> list[Path]:
    """Write a slice that works, its settings at every scale, its claims and a test.

    Returns:
        The files written, relative to `root`.

    Raises:
        InputError: `name` is not allowed or is taken, or params.yaml is wrong or has no place for
            the new entries. Nothing is written then.
        OSError: the disk refuses something. What was written before is removed again.
    """
    path = root / "params.yaml"
    params = read_project(path)
    _check_name(name, params)
    files, entries = _new_files(name), _new_entries(name, scales(params))
    _check_free(root, name, files, params, entries)

    path = path.resolve()  # params.yaml may be a link
    text = _with_entries(path.read_bytes().decode(), params, entries)
    _write({root / file: content for file, content in files.items()}, path, text)
    return [*files, Path("params.yaml")]


def _code_folder(name: str) -> Path:
    return Path("src/toycircuits/experiments") / name


def _new_files(name: str) -> dict[Path, str]:
    """Path relative to the project -> text, of every new file."""
    modules = sorted(TEMPLATE.rglob("*.py"))
    files = {
        _code_folder(name) / path.relative_to(TEMPLATE): path.read_text("utf-8") for path in modules
    }
    files[claims_file(name)] = (TEMPLATE / "claims.yaml").read_text("utf-8")
    test = (TEMPLATE / "test_slice.py.txt").read_text("utf-8")
    files[Path(f"tests/experiments/test_{name}.py")] = test.replace("{name}", name)
    return files


def _new_entries(name: str, all_scales: list[str]) -> dict[str, str]:
    """Top-level key of params.yaml -> YAML of the new entry under it."""
    run = f"experiment: {name}\nslice: {name}\nfinal: {weights_file(name)}\n"
    settings = (TEMPLATE / "settings.yaml").read_text("utf-8")
    return {
        "experiments": f"{name}:\n  slice: {name}\n  runs:\n    - {name}\n",
        "runs": f"{name}:\n{textwrap.indent(run, '  ')}",
        "released": f"- {name}\n",
        **dict.fromkeys(all_scales, f"{name}:\n{textwrap.indent(settings, '  ')}"),
    }


def _check_name(name: str, params: Mapping[str, Any]) -> None:
    """Raise an `InputError` unless `name` can be that of an experiment, a run and a slice."""
    if not re.fullmatch(NAME, name) or name != name.lower() or keyword.iskeyword(name):
        allowed = "lower-case letters, digits and _, starting with a letter, at most 100 of them"
        raise InputError(f"found the name {quoted(name)}; allowed: {allowed}; no word of Python")
    if name in (*RESERVED, *STRUCTURE, *SECTIONS, *scales(params)):
        raise InputError(f"found the name {name!r}, which has another use here; choose another")
    if find_spec(name):
        raise InputError(f"found the name {name!r}, which a Python package has; choose another")


def _check_free(
    root: Path,
    name: str,
    files: Mapping[Path, str],
    params: Mapping[str, Any],
    entries: Mapping[str, str],
) -> None:
    """Raise an `InputError` if a new file or entry exists already."""
    taken = [str(path) for path in (_code_folder(name), *files) if (root / path).exists()]
    taken += [f"{key}.{name} of params.yaml" for key in entries if name in params[key]]
    if taken:
        raise InputError(f"found the name {name!r}, which is taken: {taken[0]} exists already")


def _with_entries(text: str, params: Mapping[str, Any], entries: Mapping[str, str]) -> str:
    """The `text` of `params` with `entries` added, by top-level key.

    The text is edited line by line, because a YAML library would change the layout of all of it.

    Raises:
        InputError: the layout is such that the result would not be `params` and the entries.
    """
    yaml, expected = YAML(typ="safe"), dict(params)
    changed = text.replace("\r\n", "\n")
    for key, entry in entries.items():
        changed = _add_entry(changed, key, entry)
        new = yaml.load(entry)
        expected[key] = expected[key] + new if isinstance(new, list) else expected[key] | new
        result = None
        with contextlib.suppress(YAMLError, ValueError):
            result = yaml.load(changed)
        if result != expected:
            allowed = "write each of its entries on lines of its own, indented by two spaces"
            raise InputError(f"params.yaml: {key}: found a layout that takes no entry; {allowed}")
    return changed.replace("\n", "\r\n") if "\r\n" in text else changed


def _add_entry(text: str, key: str, entry: str) -> str:
    r"""YAML `text` with `entry`, indented, at the end of the block of the top-level `key`.

    >>> _add_entry("a:\n  b: 1\n\nc:\n  d: 2\n", "a", "e: 3\n")
    'a:\n  b: 1\n  e: 3\n\nc:\n  d: 2\n'
    >>> _add_entry("a:\n  - b", "a", "- c\n")
    'a:\n  - b\n  - c\n'
    >>> _add_entry("a:\n- b\nc: 1\n", "a", "- c\n")
    'a:\n- b\n- c\nc: 1\n'
    """
    text = text if text.endswith("\n") else f"{text}\n"
    block = re.search(
        rf"^{re.escape(key)}:[^\n]*\n(?:(?:[ \t]|- )[^\n]*\n|\n(?=\s))*", text, re.MULTILINE
    )
    if block is None:
        return text
    end = len(text[: block.end()].rstrip()) + 1
    indent = "" if "\n- " in block[0] else "  "  # DVC writes lists without an indent
    return text[:end] + textwrap.indent(entry, indent) + text[end:]


def _write(files: Mapping[Path, str], path: Path, text: str) -> None:
    """Write new `files` and replace the file at `path` by `text`; on failure leave nothing."""
    written: list[Path] = []
    try:
        with replacing(path) as partial:
            for file, content in files.items():
                written += [folder for folder in reversed(file.parents) if not folder.exists()]
                file.parent.mkdir(parents=True, exist_ok=True)
                written.append(file)
                file.write_bytes(content.encode())
            partial.write_bytes(text.encode())
            shutil.copymode(path, partial)
    except BaseException:
        for file in reversed(written):
            with contextlib.suppress(OSError):  # the file that failed may not exist
                file.rmdir() if file.is_dir() else file.unlink()
        raise
