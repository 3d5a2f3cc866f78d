"""Published toy-model circuits that run, and are checked, with one command.

All stages import this file, so that its edits make every training stale. `api.py` has the names.
"""

import importlib
from typing import TYPE_CHECKING, Any

from toycircuits.from_source import import_from_source

if TYPE_CHECKING:
    from toycircuits.api import *  # noqa: F403

import_from_source()


def __getattr__(name: str) -> Any:
    # By its name, because a stage must not depend on code that it does not run.
    return getattr(importlib.import_module("toycircuits.api"), name)
