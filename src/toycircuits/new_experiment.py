"""An experiment to begin with: `toycircuits new-experiment`."""

import keyword
import re
import textwrap
from importlib.resources import files
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from toycircuits.config import InputError, read_params, scales

MODULES = ("task", "model", "metrics", "ablations", "figures")


def create(root: Path, name: str) -> list[Path]:
    """Write a slice that works, its settings at every scale, its claims and a test.

    Returns:
        The files written, relative to `root`.

    Raises:
        InputError: `name` cannot be one, or something of that name is there already. Nothing is
            written then.
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

    params = read_params(root / "params.yaml")
    settings = f"{name}:\n{textwrap.indent((template / 'settings.yaml').read_text(), '  ')}"
    additions = {
        "experiments": f"{name}:\n  slice: {name}\n",
        "runs": f"{name}:\n  experiment: {name}\n  slice: {name}\n",
        **dict.fromkeys(scales(params), settings),
    }
    taken = [str(path) for path in (code, *new) if (root / path).exists()]
    taken += [f"{key}.{name} of params.yaml" for key in additions if name in params[key]]
    if taken:
        raise InputError(f"found the name {name!r}, which is taken: there is {taken[0]} already")

    # As text: a YAML library would lay out anew what others have written.
    text = (root / "params.yaml").read_text()
    for key, addition in additions.items():
        text = _added(text, key, textwrap.indent(addition, "  "))
    try:
        after = YAML(typ="safe").load(text)
    except YAMLError:
        after = {}
    if strays := [key for key in additions if name not in after.get(key, {})]:
        raise InputError(f"params.yaml: {strays[0]}: laid out so that no entry can be added to it")
    for path, content in new.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (root / "params.yaml").write_text(text)
    return [*new, Path("params.yaml")]


def _added(text: str, key: str, addition: str) -> str:
    r"""YAML `text` with `addition` at the end of the block of the top-level `key`.

    >>> _added("a:\n  b: 1\n\nc:\n  d: 2\n", "a", "  e: 3\n")
    'a:\n  b: 1\n  e: 3\n\nc:\n  d: 2\n'
    """
    found = re.search(rf"^{re.escape(key)}:[^\n]*\n(?:[ \t][^\n]*\n|\n(?=\s))*", text, re.MULTILINE)
    if found is None:
        return text
    end = len(text[: found.end()].rstrip()) + 1
    return f"{text[:end]}{addition}{text[end:]}"
