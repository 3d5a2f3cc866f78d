"""The Fourier circuit behind modular arithmetic, and how it forms during training.

Notation: p the modulus, w_k = 2 pi k / p for k = 1 .. (p - 1) / 2, (a, b) the inputs, c a
candidate answer. A network that has grokked computes sum_k cos(w_k (a + s b - c)), with s = -1 for
subtraction and 1 for addition. Each measure has its control: the other sign, random frequencies,
or noise.

After Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability".
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic.metrics.activations import (
    Activations,
    Problem,
    read_activations,
)
from toycircuits.experiments.modular_arithmetic.metrics.attention import attention_tables
from toycircuits.experiments.modular_arithmetic.metrics.embedding import (
    embedding_tables,
    number_embedding,
)
from toycircuits.experiments.modular_arithmetic.metrics.fourier import (
    find_key_frequencies,
    fourier_basis,
    frequency_norms,
)
from toycircuits.experiments.modular_arithmetic.metrics.logits import (
    approximation_losses,
    logit_table,
    periodicity,
    residual,
)
from toycircuits.experiments.modular_arithmetic.metrics.neurons import neuron_tables
from toycircuits.experiments.modular_arithmetic.metrics.phases import find_phases
from toycircuits.experiments.modular_arithmetic.metrics.progress import progress
from toycircuits.experiments.modular_arithmetic.metrics.training_start import training_start
from toycircuits.experiments.modular_arithmetic.task import DataSettings

__all__ = ["MeasureSettings", "measure", "training_start"]

Tables = dict[str, pd.DataFrame]


class MeasureSettings(Settings):
    """Rules and seeds of the analysis.

    Attributes:
        key_median_ratio, key_max_ratio: a frequency is key if its norm in the Fourier-transformed
            W_E is at least so many times the median over frequencies, and at least such a share of
            the largest. A singular value of W_E is large by the second rule.
        memorised_below: training loss under which a network has memorised, in nats.
        grokked_below: test loss under which it has grokked, in nats.
        clean_ratio: cleanup has ended when the test loss is under so many times the training loss.
        control_seed: seed of the random frequencies and the noise that serve as controls.
        example: the pair (a, b) whose attention is shown.
    """

    key_median_ratio: float = Field(ge=1)
    key_max_ratio: float = Field(ge=0, le=1)
    memorised_below: float = Field(gt=0)
    grokked_below: float = Field(gt=0)
    clean_ratio: float = Field(gt=1)
    control_seed: int = Field(ge=0, lt=2**63)
    example: tuple[NonNegativeInt, NonNegativeInt]

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for an example that is not a pair of the task."""
        if max(self.example) >= data.modulus:
            found, allowed = list(self.example), f"numbers below {data.modulus}"
            raise InputError(f"measure.example: found {found}; allowed are {allowed}")


def measure(
    model: Transformer,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, float]]:
    """All tables of one trained model by name, and its metrics by name.

    The key frequencies are those of the final weights, which `model` holds before and after.
    """
    basis = fourier_basis(task.modulus)[0].to(data["tokens"].device)
    norms = frequency_norms(number_embedding(model), basis)
    key = find_key_frequencies(norms, settings.key_median_ratio, settings.key_max_ratio)
    problem = Problem.of(data, task, key, settings.control_seed)
    uniform_loss = float(np.log(task.modulus))

    tables, acts = _over_training(model, states, problem)
    phases = find_phases(
        tables["progress"],
        uniform_loss,
        memorised_below=settings.memorised_below,
        grokked_below=settings.grokked_below,
        clean_ratio=settings.clean_ratio,
    )
    tables["phases"] = pd.DataFrame({"phase": phases.keys(), "step": phases.values()})
    noise = torch.Generator().manual_seed(settings.control_seed)
    tables |= embedding_tables(model, problem, noise)
    tables |= attention_tables(model, problem, settings.example)
    tables |= neuron_tables(acts, problem, noise)
    tables["logit_frequencies"] = logit_table(acts, problem, noise)
    tables["key_frequencies"] = pd.DataFrame({"frequency": key}, dtype="int64")

    last = tables["progress"].iloc[-1]
    metrics = {str(name): float(value) for name, value in last.items()} | phases
    metrics |= {"uniform_loss": uniform_loss, "n_key": len(key)}
    metrics |= _further_metrics(tables, settings.key_max_ratio)
    return tables, metrics | approximation_losses(acts, problem)


def _over_training(
    model: Transformer, states: Iterable[tuple[int, Mapping[str, Tensor]]], problem: Problem
) -> tuple[Tables, Activations]:
    """Progress measures and cosines at every checkpoint, and the activations at the last."""
    rows, cosines = [], []
    for step, state in states:
        model.load_state_dict(state)
        acts = read_activations(model, problem.tokens)
        row = progress(model, acts, problem)
        _, cosine = periodicity(acts.logits, problem.labels)
        rows.append({"step": step, **row, "residual": residual(cosine, problem.key)})
        cosines.append(
            {"step": step} | {f"k{k + 1}": value for k, value in enumerate(cosine.tolist())}
        )
    return {"progress": pd.DataFrame(rows), "cosines_by_step": pd.DataFrame(cosines)}, acts


def _further_metrics(tables: Mapping[str, pd.DataFrame], key_max_ratio: float) -> dict[str, float]:
    logits, first = tables["logit_frequencies"], tables["progress"].iloc[0]
    singular = tables["embedding_svd"]["singular_value"]
    return {
        "smallest_key_cosine": float(logits.loc[logits["key"], "cosine"].min()),
        "initial_train_loss": float(first["train_loss"]),
        "initial_test_loss": float(first["test_loss"]),
        "large_singular_values": int((singular > key_max_ratio * singular[0]).sum()),
    }
