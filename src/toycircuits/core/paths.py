"""Where things stand in the project folder, relative to it.

dvc.yaml names the same places, and a test compares the two. All other code takes paths from here
and from report_paths.py, which has those that no training reads or writes. Names of experiments and
runs may come from a file, so every function refuses a name that `check_name` refuses, such as
`../x`, with an `InputError`.
"""

from pathlib import Path

from toycircuits.core.config import InputError, check_name

ARTIFACTS = Path("artifacts")  # large, cached by DVC
REPORTS = Path("reports")  # small, in git
RESUME = Path(".resume")  # unfinished trainings; no stage names it as an output
WEIGHTS = REPORTS / "weights"  # released final weights
FLOAT_FORMAT = "%.9g"  # of every table: enough for float32, and the same bytes every time


MARKS = ("params.yaml", "dvc.yaml", "stages/train.py")  # a folder with all of them is a project
MORE_MARKS = (*MARKS, "dvc.lock", "claims", "src/toycircuits")


def find_root(root: Path | str | None = None) -> Path:
    """The project folder: `root`, or by default the one around the working folder or this code.

    Raises:
        InputError: `root` is not a project folder, or there is no project folder around, or a file
            is missing from the nearest one.
    """
    here, code = Path.cwd(), Path(__file__).resolve()
    candidates = (here, *here.parents, *code.parents) if root is None else (Path(root),)
    for folder in candidates:
        missing = [name for name in MARKS if not exists(folder / name)]
        if not missing:
            return folder
        # Another project further up, or that of this code, would be a wrong answer.
        if sum(exists(folder / name) for name in MORE_MARKS) >= 3:
            hint = f"`git checkout {missing[0]}` restores it in a clone of the project"
            raise InputError(f"{folder / missing[0]}: missing; {hint}")
    place = f"{here} and the folders above it" if root is None else root
    hint = f"go to a folder that has {MARKS[0]}, {MARKS[1]} and {MARKS[2]}"
    raise InputError(f"{place}: found no toycircuits project; {hint}")


def exists(path: Path) -> bool:
    """Whether there is a file or folder at `path`.

    Raises:
        OSError: nobody can tell, for example because a folder above it cannot be entered.
            `Path.exists` says no in this case, in some versions of Python.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _experiment(name: str) -> str:
    return check_name(name, "experiment")


def _run(name: str) -> str:
    return check_name(name, "run")


def data_file(experiment: str) -> Path:
    """The tensors that the stage `generate` makes."""
    return ARTIFACTS / "data" / f"{_experiment(experiment)}.safetensors"


def trajectories(run: str) -> Path:
    """Folder with one trajectory for each trained model of a run."""
    return ARTIFACTS / "trajectories" / _run(run)


def tables(experiment: str) -> Path:
    """Folder of all tables of an experiment, with one subfolder for each run."""
    return REPORTS / _experiment(experiment) / "tables"


def training_table(experiment: str, run: str) -> Path:
    """The training log of a run: losses and metrics by step."""
    return tables(experiment) / _run(run) / "training.csv"


def weights_file(run: str) -> Path:
    """The released final weights of a run, which git carries."""
    return WEIGHTS / f"{_run(run)}.safetensors"


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


def remedy(path: Path) -> str:
    """How to get a result again that is absent or damaged: the end of a message, or nothing.

    Args:
        path: a file or folder of a project; the project folder itself does not matter.

    >>> remedy(Path("artifacts/data/some.safetensors"))
    '; `toycircuits repro --force generate@some` makes it again'
    """
    if (stage := stage_of(path)) is None:
        return ""
    force = "" if path.exists() else "--force "  # what is merely absent counts as done
    again = f"`toycircuits repro {force}{stage}` makes it again"
    return f"; `git checkout` restores it, {again}" if "reports" in path.parts else f"; {again}"


def stage_of(path: Path) -> str | None:
    """The stage that makes the result at `path`; None if there is none.

    >>> stage_of(Path("/home/me/project/reports/e/tables/run/measure/metrics.csv"))
    'measure@run'
    """
    parts = path.with_suffix("").parts
    start = max(
        (at for at, part in enumerate(parts) if part in ("artifacts", "reports")), default=0
    )
    match parts[start:]:
        case ["artifacts", "data", name, *_]:
            return f"generate@{name}"
        case ["artifacts", "trajectories", name, *_] | ["reports", _, "tables", name, "training"]:
            return f"train@{name}"
        case ["reports", "weights", name]:
            return f"release@{name}"
        case ["reports", _, "tables", name, "ablations"]:
            return f"ablate@{name}"
        case ["reports", _, "tables", name, stage, *_]:
            return f"{stage}@{name}"
        case ["artifacts", "figures", name, *_] | ["reports", name, "figures" | "summary", *_]:
            return f"render@{name}"
        case ["reports", name, "claims" | "metrics"]:
            return f"judge@{name}"
        case ["artifacts", "sections", name, *_]:
            return f"section@{name}"
        case _:
            return None
