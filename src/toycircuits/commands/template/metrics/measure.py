"""How the embedding grows."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from toycircuits.core.config import Settings


class MeasureSettings(Settings):
    """Nothing to set."""


def measure(
    model: Any,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: Any,
    settings: MeasureSettings,
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """The norm of the embedding at every checkpoint, and that of the trained model."""
    rows = [{"step": step, "norm": state["embed.W_E"].norm().item()} for step, state in states]
    return {"norms": pd.DataFrame(rows)}, {"final_norm": rows[-1]["norm"]}
