"""Tables over all runs, beside what the original study printed."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from toycircuits.core.config import Settings
from toycircuits.core.tables import MODEL, Z95
from toycircuits.experiments.linear_regression.figures.labels import named


class Published(Settings):
    """What the original study printed of one run.

    Attributes:
        heads: (w, mu) of each head, or None.
        mu_sums: sums of the negative and of the positive mu, or None.
        w_mu: sum of w mu, or None.
    """

    heads: tuple[tuple[float, float], ...] | None
    mu_sums: tuple[float, float] | None
    w_mu: float | None


def summarise_heads(heads: pd.DataFrame, published: Mapping[str, Published]) -> pd.DataFrame:
    """(w, mu) of every head at the end, beside the published ones in the same order of w.

    Args:
        published: by run.
    """
    final = named(heads)
    final = final[final["step"] == final.groupby(MODEL)["step"].transform("max")]
    final = final.sort_values([*MODEL, "layer", "w"], kind="stable")
    final[["published_w", "published_mu"]] = np.nan
    for run, printed in published.items():
        if printed.heads is None:
            continue
        for seed in final.loc[final["run"] == run, "seed"].unique():
            rows = final.index[(final["run"] == run) & (final["seed"] == seed)]
            if len(rows) == len(printed.heads):
                final.loc[rows, ["published_w", "published_mu"]] = sorted(printed.heads)
    return final


def summarise_models(
    losses: pd.DataFrame, sums: pd.DataFrame, published: Mapping[str, Published]
) -> pd.DataFrame:
    """Final loss of every model with its 95% confidence interval, and the sums over its heads.

    Args:
        published: by run.
    """
    models = named(losses)
    models = models[models["estimator"] == "transformer"].drop(columns="estimator")
    for prefix in ("", "excess_"):
        mean, reach = models[f"{prefix}mse"], Z95 * models[f"{prefix}standard_error"]
        models[f"{prefix}low"], models[f"{prefix}high"] = mean - reach, mean + reach
    models = models.merge(named(sums).drop(columns=["group", "label"]), "left", on=MODEL)
    columns = ["published_mu_negative", "published_mu_positive", "published_w_mu"]
    models[columns] = np.nan
    for run, printed in published.items():
        values = (*(printed.mu_sums or (np.nan, np.nan)), printed.w_mu)
        models.loc[models["run"] == run, columns] = np.array(values, dtype=float)
    return models
