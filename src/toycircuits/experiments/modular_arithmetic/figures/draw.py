"""Figures of modular arithmetic, drawn from its tables alone."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from toycircuits.core.config import Settings
from toycircuits.core.tables import MODEL, first_model
from toycircuits.experiments.modular_arithmetic.figures.ablations import ablation_bars
from toycircuits.experiments.modular_arithmetic.figures.attention import (
    attention_maps,
    attention_means,
)
from toycircuits.experiments.modular_arithmetic.figures.embedding import (
    embedding_projection,
    key_rows_gram,
    singular_values,
    singular_vectors,
)
from toycircuits.experiments.modular_arithmetic.figures.fourier import (
    basis_gram,
    basis_heatmap,
    basis_lines,
    component_norms,
    key_waves,
)
from toycircuits.experiments.modular_arithmetic.figures.logits import (
    cosines_over_training,
    logit_cosines,
)
from toycircuits.experiments.modular_arithmetic.figures.loss import loss_curves, loss_with_phases
from toycircuits.experiments.modular_arithmetic.figures.neurons import (
    neuron_fourier,
    neuron_frequency_counts,
    neuron_shares,
)
from toycircuits.experiments.modular_arithmetic.figures.progress import (
    progress_measures,
    restricted_excluded,
    restricted_ratio,
)


class RenderSettings(Settings):
    """What to draw beside the measured values.

    Attributes:
        published_phases: steps that the original study marked by hand, or None where there is
            nothing to compare with.
    """

    published_phases: tuple[int, int, int] | None


def summarise(
    tables: Mapping[str, pd.DataFrame], settings: RenderSettings
) -> dict[str, pd.DataFrame]:
    """Which models grokked, when their phases ended, and their final losses."""
    phases = tables["phases"].pivot(index=MODEL, columns="phase", values="step")
    final = tables["progress"].groupby(MODEL).last()
    losses = ["train_loss", "test_loss", "restricted_loss", "excluded_loss", "residual"]
    return {"models": final[losses].join(phases).reset_index()}


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, go.Figure]:
    """All figures, by name. Curves show every model; pictures of weights show the first one.

    The two figures that show key frequencies alone are left out if no frequency is key.
    """
    first = {name: first_model(table) for name, table in tables.items() if "seed" in table}
    frequencies = first["logit_frequencies"]
    key = frequencies.loc[frequencies["key"], "frequency"].tolist()
    uniform = float(np.log(len(first["fourier_basis"])))  # ln p
    training, phases = tables["training"], tables["phases"]
    figures = {
        "loss": loss_curves(training, uniform),
        "loss_phases": loss_with_phases(training, phases, settings.published_phases, uniform),
        **_of_weights(first),
        "attention_means": attention_means(first["attention"]),
        "attention_maps": attention_maps(first["attention_maps"]),
        "neuron_shares": neuron_shares(first["neurons"]),
        "neuron_frequencies": neuron_frequency_counts(first["neurons"]),
        "neuron_fourier": neuron_fourier(first["neuron_fourier"]),
        "logit_weights_fourier": component_norms(
            first["logit_weights_fourier"], "W_out W_U in the Fourier basis", "norm over neurons"
        ),
        "logit_cosines": logit_cosines(frequencies),
        "cosines_over_training": cosines_over_training(
            first["cosines_by_step"], first["progress"], key
        ),
        "restricted_excluded": restricted_excluded(first["progress"]),
        "restricted_ratio": restricted_ratio(first["progress"]),
        "progress_measures": progress_measures(first["progress"]),
        "ablations": ablation_bars(first["ablations"]),
    }
    if key:
        figures["embedding_key_gram"] = key_rows_gram(first["embedding_gram"])
        figures["key_waves"] = key_waves(first["fourier_basis"], key)
    return figures


def _of_weights(first: Mapping[str, pd.DataFrame]) -> dict[str, go.Figure]:
    basis = first["fourier_basis"]
    return {
        "embedding_singular_values": singular_values(first["embedding_svd"]),
        "embedding_singular_vectors": singular_vectors(first["embedding_vectors"]),
        "fourier_basis": basis_heatmap(basis),
        "fourier_basis_rows": basis_lines(basis),
        "fourier_basis_gram": basis_gram(basis),
        "embedding_fourier": embedding_projection(first["embedding_projection"]),
        "embedding_fourier_norms": component_norms(
            first["embedding_fourier"], "Embedding W_E in the Fourier basis", "norm over d_model"
        ),
    }
