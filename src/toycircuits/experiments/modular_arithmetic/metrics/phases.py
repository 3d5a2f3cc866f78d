"""The phases of a training: memorisation, circuit formation, cleanup."""

import numpy as np
import pandas as pd


def find_phases(
    table: pd.DataFrame,
    uniform_loss: float,
    *,
    memorised_below: float,
    grokked_below: float,
    clean_ratio: float,
) -> dict[str, float]:
    """Steps at which the phases end, by a stated rule; NaN for what does not happen.

    Memorisation ends where the test loss is largest. Circuit formation ends at the first step
    after it whose test loss is under that of guessing, ln p. Cleanup ends at the first step from
    there on whose test loss is under `clean_ratio` times the training loss.

    Args:
        table: the columns step, train_loss and test_loss (in nats), in order of the step.
        uniform_loss: loss of guessing, ln p.
        memorised_below: training loss under which the network has memorised.
        grokked_below: test loss under which it has grokked.
    """
    step, train, test = (table[name].to_numpy() for name in ("step", "train_loss", "test_loss"))
    peak = int(test.argmax())
    after = np.arange(len(step)) > peak
    formed = _first(step, after & (test < uniform_loss))
    clean = _first(step, (step >= formed) & (test < clean_ratio * train))
    return {
        "memorised_step": _first(step, train < memorised_below),
        "grokked_step": _first(step, after & (test < grokked_below)),
        "memorisation_end": float(step[peak]),
        "circuit_formation_end": formed,
        "cleanup_end": clean,
    }


def _first(steps: np.ndarray, holds: np.ndarray) -> float:
    return float(steps[holds.argmax()]) if holds.any() else float("nan")
