"""Published toy-model circuits that run, and are checked, with one command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toycircuits.released import ReleasedRun, load_run

__all__ = ["ReleasedRun", "load_run"]


def __getattr__(name: str) -> Any:
    # Lazy: a stage imports modules of the package and must not get code that it does not declare.
    if name in __all__:
        from toycircuits import released

        return getattr(released, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
