"""Paths of the results that are made from trained models, relative to the project folder.

paths.py has the paths that trainings read and write. The two are apart, because an edit of a module
that trainings import makes all trainings stale: DVC runs them again.
"""

from pathlib import Path

from toycircuits.core.config import check_name
from toycircuits.core.paths import ARTIFACTS, REPORTS

LOGS = Path("logs")  # what each command of a reproduction printed
ATTEST = Path("attest")  # hashes of the results of each portable scale
CLAIMS = Path("claims")  # one file of claims for each experiment
PAGE = REPORTS / "index.html"
RECORDS = REPORTS / "stages.json"  # how long each stage ran, on which machine


def _experiment(name: str) -> str:
    return check_name(name, "experiment")


def figure_json(experiment: str) -> Path:
    """Folder of interactive figures."""
    return ARTIFACTS / "figures" / _experiment(experiment)


def figure_png(experiment: str) -> Path:
    """Folder of static figures."""
    return REPORTS / _experiment(experiment) / "figures"


def summary(experiment: str) -> Path:
    """Folder of the tables that summarise runs, variants and seeds."""
    return REPORTS / _experiment(experiment) / "summary"


def claims_file(experiment: str) -> Path:
    """The claims about an experiment, as a person wrote them."""
    return CLAIMS / f"{_experiment(experiment)}.yaml"


def claims_table(experiment: str) -> Path:
    """The verdicts on the claims about an experiment."""
    return REPORTS / _experiment(experiment) / "claims.csv"


def section(experiment: str) -> Path:
    """Folder of the part of the page that is about an experiment."""
    return ARTIFACTS / "sections" / _experiment(experiment)


def metrics_file(experiment: str) -> Path:
    """The key metrics of an experiment, for `dvc metrics show`."""
    return REPORTS / _experiment(experiment) / "metrics.json"
