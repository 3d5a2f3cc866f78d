"""Published toy-model circuits that run, and are checked, with one command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toycircuits.published import PublishedRun, load_run

__all__ = ["PublishedRun", "load_run"]


def __getattr__(name: str) -> Any:
    # Lazy: a stage imports `toycircuits.config`, and must not get code that it does not declare.
    if name in __all__:
        from toycircuits import published

        return getattr(published, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
