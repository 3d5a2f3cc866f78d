"""Import TransformerLens without the Hugging Face libraries, which load for over a second.

This project uses its hooks, caches and factored matrices, which do not need those libraries. Its
`__init__` imports them for language models. As stages start dozens of times in one reproduction,
the project's commands import TransformerLens with stand-ins in their place. Other programs that
import `toycircuits` get TransformerLens as it is.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HEAVY = ("transformers", "datasets", "huggingface_hub")


class _StandIn(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for every module of `HEAVY`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for modules of `HEAVY`, None for others."""
        heavy = fullname.partition(".")[0] in HEAVY
        return ModuleSpec(fullname, self, is_package=True) if heavy else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty stand-in."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def import_transformer_lens() -> None:
    """Import TransformerLens with stand-ins; as it is, should it not do with these.

    Where TransformerLens, or what it would load, is imported already, nothing is done.
    """
    if any(name in sys.modules for name in ("transformer_lens", *HEAVY)):
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        import transformer_lens  # noqa: F401
    except Exception as error:  # whatever a later version of it wants from a stand-in
        print(f"note: TransformerLens starts slowly, with all it loads: {error}", file=sys.stderr)
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformer_lens"]:
            del sys.modules[name]
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]
