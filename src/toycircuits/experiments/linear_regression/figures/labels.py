"""How models are named and grouped, and what the axes are called.

Runs without variants differ in their number of heads: they are the group "heads". A run with
variants is a group of its own.
"""

from collections.abc import Iterator

import pandas as pd

HEADS = "heads"
DESCENT = "centred gradient descent, best rate"  # as the tables call it
MSE = "mean squared error of y<sub>q</sub>"
WEIGHTS = {"w": "w<sub>h</sub>", "mu": "μ<sub>h</sub>"}
TICKS = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)]
FEW_DECADES = {"type": "log", "tickvals": TICKS, "tickformat": "~g"}
COLUMNS = 4  # panels beside each other


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns `group` and `label`.

    >>> table = pd.DataFrame({"run": ["lr_h2", "lr_inits"], "variant": ["", "small_id"]})
    >>> named(table)[["group", "label"]].values.tolist()
    [['heads', 'H = 2'], ['inits', 'small_id']]
    """
    table = table.sort_values(["run", "variant"], kind="stable")  # colours follow the order
    variant, last = table["variant"], table["run"].str.rpartition("_")[2]
    return table.assign(
        group=last.where(variant != "", HEADS),
        label=variant.where(variant != "", last.str.replace(r"^h(\d+)$", r"H = \1", regex=True)),
    )


def parts(table: pd.DataFrame, by: str = "label") -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each value of column `by`, in order of appearance."""
    for name, part in table.groupby(by, sort=False):
        yield str(name), part


def with_layer(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the layer added to the labels of models that have several layers."""
    several = table.groupby("label")["layer"].transform("nunique") > 1
    layer = ", layer " + table["layer"].astype(str)
    return table.assign(label=table["label"] + layer.where(several, ""))
