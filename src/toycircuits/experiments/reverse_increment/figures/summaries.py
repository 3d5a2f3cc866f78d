"""Tables over runs and seeds: success rates, differences between runs, readings."""

from collections.abc import Mapping

import pandas as pd

from toycircuits.core.tables import MODEL, mean_and_range, wilson
from toycircuits.experiments.reverse_increment.figures.curves import RIGHT

MIRROR = {"mirror_weight": "weight", "mirror_share": "argmax_share"}  # name -> column of `mirror`


def success_rates(models: pd.DataFrame, at_least: float) -> pd.DataFrame:
    """How many seeds of each run succeed, with the 95% interval of the rate.

    Args:
        models: the last row of each model's training log.
        at_least: share of right held-out symbols, or whole strings, from which a seed succeeds.
    """
    rows = []
    for run, seeds in models.groupby("run", sort=False):
        for name, counted in RIGHT.items():
            values = seeds[f"holdout_{name}"]
            n, successes = len(values), int((values >= at_least).sum())
            low, high = wilson(successes, n)
            rate = {"seeds": n, "successes": successes, "rate": successes / n}
            row = {
                "run": run,
                "of": counted,
                "at_least": at_least,
                **rate,
                "low": low,
                "high": high,
            }
            rows.append(row | {"mean": values.mean(), "least": values.min(), "most": values.max()})
    return pd.DataFrame(rows)


def differences(models: pd.DataFrame) -> pd.DataFrame:
    """Each run minus the first run, seed by seed: mean, least and greatest difference."""
    metrics = [name for name in models.columns if name.startswith(("train_", "holdout_"))]
    by_seed = models.set_index("seed")
    first, *others = models["run"].unique()
    rows = []
    for run in others:
        less = by_seed[by_seed["run"] == run][metrics] - by_seed[by_seed["run"] == first][metrics]
        stats = less.agg(["count", "mean", "min", "max"]).T.rename_axis("metric").reset_index()
        stats.insert(0, "run", run)
        stats.insert(1, "less", first)
        rows.append(stats)
    return pd.concat(rows) if rows else pd.DataFrame(columns=["run", "less", "metric"])


def mirror_summary(mirror: pd.DataFrame) -> pd.DataFrame:
    """Weight and share on the anti-diagonal of each run, layer, head and case, over seeds."""
    needed = mirror.query("shift == 0")
    keys = ["run", "layer", "head", "case"]
    return pd.concat(
        mean_and_range(needed, keys, column).assign(of=name) for name, column in MIRROR.items()
    )


def right_readings(confusion: pd.DataFrame) -> pd.DataFrame:
    """How often each reading is the answer, for each run over seeds."""
    right = confusion.query("target == read")
    right = right.assign(share=right["share"] * right["due"])
    by_model = right.groupby([*MODEL, "case"], sort=False)["share"].sum().reset_index()
    return mean_and_range(by_model, ["run", "case"], "share")


def commonest_share(confusion: pd.DataFrame) -> Mapping[str, float]:
    """For each run, the share of the commonest symbol in the held-out answers."""
    due = confusion.groupby("run")["due"].max()
    return {str(run): share for run, share in due.items()}
