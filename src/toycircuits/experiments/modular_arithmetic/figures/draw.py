"""Figures of modular arithmetic, drawn from its tables alone."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from toycircuits.core.config import Settings
from toycircuits.core.plotting import Drawing
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


def draw(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, Drawing]:
    """All figures, by name. Curves show every model; pictures of weights show the first one.

    The two figures that show key frequencies alone are left out if no frequency is key.
    """
    return {
        **_of_loss(tables, settings),
        **_of_embedding(tables),
        **_of_activations(tables),
        **_of_logits(tables),
        **_of_progress(tables),
        "ablations": Drawing(lambda: ablation_bars(first_model(tables["ablations"]))),
        **_of_key_frequencies(tables),
    }


def key_frequencies(tables: Mapping[str, pd.DataFrame]) -> list[int]:
    """The key frequencies of the first model."""
    frequencies = first_model(tables["logit_frequencies"])
    return [int(k) for k in frequencies.loc[frequencies["key"], "frequency"]]


def _of_loss(tables: Mapping[str, pd.DataFrame], settings: RenderSettings) -> dict[str, Drawing]:
    def uniform() -> float:
        return float(np.log(len(first_model(tables["fourier_basis"]))))  # ln p

    def with_phases() -> go.Figure:
        published = settings.published_phases
        return loss_with_phases(tables["training"], tables["phases"], published, uniform())

    return {
        "loss": Drawing(lambda: loss_curves(tables["training"], uniform()), over_training=True),
        "loss_phases": Drawing(with_phases, over_training=True),
    }


def _of_embedding(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    def first(name: str) -> pd.DataFrame:
        return first_model(tables[name])

    norms = ("Embedding W_E in the Fourier basis", "norm over d_model")
    return {
        "embedding_singular_values": Drawing(lambda: singular_values(first("embedding_svd"))),
        "embedding_singular_vectors": Drawing(lambda: singular_vectors(first("embedding_vectors"))),
        "fourier_basis": Drawing(lambda: basis_heatmap(first("fourier_basis"))),
        "fourier_basis_rows": Drawing(lambda: basis_lines(first("fourier_basis"))),
        "fourier_basis_gram": Drawing(lambda: basis_gram(first("fourier_basis"))),
        "embedding_fourier": Drawing(lambda: embedding_projection(first("embedding_projection"))),
        "embedding_fourier_norms": Drawing(
            lambda: component_norms(first("embedding_fourier"), *norms)
        ),
    }


def _of_activations(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    def first(name: str) -> pd.DataFrame:
        return first_model(tables[name])

    return {
        "attention_means": Drawing(lambda: attention_means(first("attention"))),
        "attention_maps": Drawing(lambda: attention_maps(first("attention_maps"))),
        "neuron_shares": Drawing(lambda: neuron_shares(first("neurons"))),
        "neuron_frequencies": Drawing(lambda: neuron_frequency_counts(first("neurons"))),
        "neuron_fourier": Drawing(lambda: neuron_fourier(first("neuron_fourier"))),
    }


def _of_logits(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    def first(name: str) -> pd.DataFrame:
        return first_model(tables[name])

    def over_training() -> go.Figure:
        cosines, progress = first("cosines_by_step"), first("progress")
        return cosines_over_training(cosines, progress, key_frequencies(tables))

    norms = ("W_out W_U in the Fourier basis", "norm over neurons")
    return {
        "logit_weights_fourier": Drawing(
            lambda: component_norms(first("logit_weights_fourier"), *norms)
        ),
        "logit_cosines": Drawing(lambda: logit_cosines(first("logit_frequencies"))),
        "cosines_over_training": Drawing(over_training, over_training=True),
    }


def _of_progress(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    def progress() -> pd.DataFrame:
        return first_model(tables["progress"])

    return {
        "restricted_excluded": Drawing(lambda: restricted_excluded(progress()), over_training=True),
        "restricted_ratio": Drawing(lambda: restricted_ratio(progress()), over_training=True),
        "progress_measures": Drawing(lambda: progress_measures(progress()), over_training=True),
    }


def _of_key_frequencies(tables: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    if "logit_frequencies" not in tables or not (key := key_frequencies(tables)):
        return {}
    return {
        "embedding_key_gram": Drawing(lambda: key_rows_gram(first_model(tables["embedding_gram"]))),
        "key_waves": Drawing(lambda: key_waves(first_model(tables["fourier_basis"]), key)),
    }
