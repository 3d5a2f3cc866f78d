"""Where things stand in the project folder; dvc.yaml says the same, and a test compares the two."""

from pathlib import Path

from toycircuits.core.config import InputError

ARTIFACTS = Path("artifacts")  # large, cached by DVC
REPORTS = Path("reports")  # small, in git
RESUME = Path(".resume")  # unfinished trainings; belongs to no stage's outs
FLOAT_FORMAT = "%.9g"  # of every table: enough for float32, and the same bytes every time


def find_root(root: Path | str | None = None) -> Path:
    """`root`, or if it is None the first project folder above the working folder or this code.

    Raises:
        InputError: `root` is no project folder, or none is found.
    """
    here, code = Path.cwd(), Path(__file__).resolve()
    candidates = (here, *here.parents, *code.parents) if root is None else (Path(root),)
    for folder in candidates:
        if all((folder / name).exists() for name in ("params.yaml", "dvc.yaml", "stages/train.py")):
            return folder
    place = f"{here} or above" if root is None else root
    raise InputError(f"{place}: no toycircuits project (params.yaml, dvc.yaml, stages/) there")


def data_file(experiment: str) -> Path:
    """The tensors that `generate` makes."""
    return ARTIFACTS / "data" / f"{experiment}.safetensors"


def trajectories(run: str) -> Path:
    """Folder with one trajectory for each trained model of a run."""
    return ARTIFACTS / "trajectories" / run


def figure_json(experiment: str) -> Path:
    """Folder of interactive figures."""
    return ARTIFACTS / "figures" / experiment


def figure_png(experiment: str) -> Path:
    """Folder of static figures."""
    return REPORTS / experiment / "figures"


def tables(experiment: str) -> Path:
    """Folder of all the tables of an experiment, one subfolder a run."""
    return REPORTS / experiment / "tables"


def summary(experiment: str) -> Path:
    """Folder of the tables that compare runs, variants and seeds."""
    return REPORTS / experiment / "summary"


def weights_file(run: str) -> Path:
    """The released final weights of a run: those that git carries."""
    return REPORTS / "weights" / f"{run}.safetensors"


def model_name(variant: str, weight_seed: int, batch_seed: int | None) -> str:
    """Name of one trained model of a run.

    >>> model_name("", 999, None), model_name("frozen", 1, 2)
    ('seed999', 'frozen-seed1-batch2')
    """
    parts = [variant] if variant else []
    parts.append(f"seed{weight_seed}")
    if batch_seed not in (None, weight_seed):
        parts.append(f"batch{batch_seed}")
    return "-".join(parts)
