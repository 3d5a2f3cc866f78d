"""An experiment to begin with: `toycircuits new-experiment`."""

import contextlib
import keyword
import re
import shutil
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from toycircuits.core.config import InputError, read_params, scales

MODULES = ("task", "model", "metrics", "ablations", "figures")


def create(root: Path, name: str) -> list[Path]:
    """Write a slice that works, its settings at every scale, its claims and a test.

    Returns:
        The files written, relative to `root`.

    Raises:
        InputError: `name` cannot be one, something of that name is there already, or params.yaml
            is no place for it. Nothing is written then.
        OSError: the disk refuses something. What was written before is removed again.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        allowed = "lower-case letters, digits and _, a letter first"
        raise InputError(f"found the name {name!r}; allowed: {allowed}")
    template = files("toycircuits.skeleton")
    code = Path("src/toycircuits/experiments") / name
    new = {code / f"{module}.py": (template / f"{module}.py").read_text() for module in MODULES}
    new[code / "__init__.py"] = ""
    new[Path(f"claims/{name}.yaml")] = (template / "claims.yaml").read_text()
    test = (template / "test_slice.py.txt").read_text()
    new[Path(f"tests/experiments/test_{name}.py")] = test.replace("{name}", name)

    path = root / "params.yaml"
    params = read_params(path)
    settings = f"{name}:\n{textwrap.indent((template / 'settings.yaml').read_text(), '  ')}"
    additions = {
        "experiments": f"{name}:\n  slice: {name}\n",
        "runs": f"{name}:\n  experiment: {name}\n  slice: {name}\n",
        **dict.fromkeys(scales(params), settings),
    }
    for key in additions:
        if not isinstance(params.get(key), dict):
            found = f"found {params[key]!r}" if key in params else "missing key"
            raise InputError(f"params.yaml: {key}: {found}; allowed is a mapping with entries")
    taken = [str(file) for file in (code, *new) if (root / file).exists()]
    taken += [f"{key}.{name} of params.yaml" for key in additions if name in params[key]]
    if taken:
        raise InputError(f"found the name {name!r}, which is taken: there is {taken[0]} already")

    path = path.resolve()  # what a link to it leads to
    partial = path.with_name(f".{path.name}.partial")
    contents = {partial: _with(path.read_bytes().decode(), params, additions)}
    _write(contents | {root / file: content for file, content in new.items()}, partial, path)
    return [*new, Path("params.yaml")]


def _with(text: str, params: Mapping[str, Any], additions: Mapping[str, str]) -> str:
    """The `text` of `params` with the entries of `additions`, by top-level key.

    As text: a YAML library would lay out anew what others have written.

    Raises:
        InputError: it is laid out so that the outcome would not be `params` and the additions.
    """
    yaml, wanted = YAML(typ="safe"), dict(params)
    changed = text.replace("\r\n", "\n")
    for key, addition in additions.items():
        changed = _added(changed, key, textwrap.indent(addition, "  "))
        wanted[key] = wanted[key] | yaml.load(addition)
        after = None
        with contextlib.suppress(YAMLError, ValueError):
            after = yaml.load(changed)
        if after != wanted:
            raise InputError(f"params.yaml: {key}: laid out so that no entry can be added to it")
    return changed.replace("\n", "\r\n") if "\r\n" in text else changed


def _write(contents: Mapping[Path, str], partial: Path, path: Path) -> None:
    """Write files, and let the one at `partial` take the place of `path`; or leave nothing."""
    written: list[Path] = []
    try:
        for file, content in contents.items():
            written += [folder for folder in reversed(file.parents) if not folder.exists()]
            file.parent.mkdir(parents=True, exist_ok=True)
            written.append(file)
            file.write_bytes(content.encode())
        shutil.copymode(path, partial)
        partial.replace(path)
    except BaseException:
        for file in reversed(written):
            with contextlib.suppress(OSError):  # it was not written after all
                file.rmdir() if file.is_dir() else file.unlink()
        raise


def _added(text: str, key: str, addition: str) -> str:
    r"""YAML `text` with `addition` at the end of the block of the top-level `key`.

    >>> _added("a:\n  b: 1\n\nc:\n  d: 2\n", "a", "  e: 3\n")
    'a:\n  b: 1\n  e: 3\n\nc:\n  d: 2\n'
    >>> _added("a:\n  b: 1", "a", "  e: 3\n")
    'a:\n  b: 1\n  e: 3\n'
    """
    text = text if text.endswith("\n") else f"{text}\n"
    found = re.search(rf"^{re.escape(key)}:[^\n]*\n(?:[ \t][^\n]*\n|\n(?=\s))*", text, re.MULTILINE)
    if found is None:
        return text
    end = len(text[: found.end()].rstrip()) + 1
    return f"{text[:end]}{addition}{text[end:]}"
