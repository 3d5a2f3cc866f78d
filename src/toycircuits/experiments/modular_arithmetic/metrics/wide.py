"""Matrices as wide tables."""

import pandas as pd
from torch import Tensor


def wide(matrix: Tensor, columns: list[str] | None = None) -> pd.DataFrame:
    """A matrix [row, column] as a table, with the columns x0, x1, ... by default.

    Values are rounded to 5 decimals, because they are only looked at.
    """
    names = columns if columns is not None else [f"x{i}" for i in range(matrix.shape[1])]
    return pd.DataFrame(matrix.detach().cpu().numpy().round(5), columns=names)
