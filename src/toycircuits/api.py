"""What `import toycircuits` offers. Each name loads when it is first used."""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toycircuits.foreign.analysis import Analysis as Analysis
    from toycircuits.foreign.analysis import analyse as analyse
    from toycircuits.released import ReleasedRun as ReleasedRun
    from toycircuits.released import load_run as load_run

    __version__: str

__all__ = ["Analysis", "ReleasedRun", "__version__", "analyse", "load_run"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version()
    if name in ("Analysis", "analyse"):
        from toycircuits.foreign import analysis

        return getattr(analysis, name)
    if name in ("ReleasedRun", "load_run"):
        from toycircuits import released

        return getattr(released, name)
    raise AttributeError(f"module 'toycircuits' has no attribute {name!r}")


def version() -> str:
    """The installed version of this package; "unknown" if it is not installed."""
    try:
        return metadata.version("toycircuits")
    except metadata.PackageNotFoundError:
        return "unknown"
