"""Parse params.yaml once. DVC parses it once for each stage, which takes most of its time."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.dependency import param


@contextmanager
def params_parsed_once() -> Iterator[None]:
    """Let DVC parse a file of parameters again only when it has changed.

    Keys without wildcards are also looked up here: DVC walks the whole tree for each key.
    """
    original, parsed = param.read_param_file, {}

    def read(
        fs: Any, path: str, key_paths: Any = None, flatten: bool = False, **options: Any
    ) -> Any:
        plain = key_paths and flatten and not any(set(key) & set("*?[!") for key in key_paths)
        if not plain or options:
            return original(fs, path, key_paths, flatten, **options)
        state = Path(path).stat()
        version = (path, state.st_mtime_ns, state.st_size, state.st_ino)
        if version not in parsed:
            parsed[version] = original(fs, path)
        values = dict(_values_at(parsed[version], key_paths))
        # Other keys may be missing, or be places in a list. DVC knows both.
        is_complete = len(values) == len({*key_paths})
        return values if is_complete else original(fs, path, key_paths, flatten)

    param.read_param_file = read
    try:
        yield
    finally:
        param.read_param_file = original


def _values_at(tree: Any, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Values at those of `keys` that lead through mappings, from name to name."""
    for key in keys:
        value = tree
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            yield key, copy.deepcopy(value)  # YAML would write a shared object as a reference
