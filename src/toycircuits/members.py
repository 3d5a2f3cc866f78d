"""Which models a run has."""

import re
from pathlib import Path


def member_folders(folder: Path) -> list[Path]:
    """Trajectories that stand in `folder`, by variant and then by seed.

    Seeds are numbers: the model of seed 999 comes before that of seed 1000.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("LN-seed10", "seed1000", "LN-seed9", "seed999"):
    ...     (folder / name).mkdir()
    >>> [path.name for path in member_folders(folder)]
    ['LN-seed9', 'LN-seed10', 'seed999', 'seed1000']
    """

    def key(path: Path) -> list[str | int]:
        # Texts and numbers take turns, so that like is compared with like.
        parts = re.split(r"(\d+)", path.name)
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    return sorted((path for path in folder.glob("*") if path.is_dir()), key=key)
