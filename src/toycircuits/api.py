"""What `import toycircuits` offers. Each name loads when it is first used."""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toycircuits.released import ReleasedRun as ReleasedRun
    from toycircuits.released import load_run as load_run

    __version__: str

__all__ = ["ReleasedRun", "__version__", "load_run"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version()
    if name in __all__:
        from toycircuits import released

        return getattr(released, name)
    raise AttributeError(f"module 'toycircuits' has no attribute {name!r}")


def version() -> str:
    """The installed version of this package; "unknown" if it is not installed."""
    try:
        return metadata.version("toycircuits")
    except metadata.PackageNotFoundError:
        return "unknown"
