"""What the separator's residual stream holds: principal components and linear probes.

Each has a negative control: the network before training. Probes have a second one: shuffled labels.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from toycircuits.core.config import Settings
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.list_copy.metrics.activations import activations
from toycircuits.experiments.list_copy.task import LIST_LENGTH, POSITIONS, SEP

SHOWN = 3  # principal components with coordinates, as many as a picture has dimensions
SOLVER_STEPS = 10_000  # far more than the solver needs; it warns if it does not converge


class ProbeSettings(Settings):
    """Linear probes.

    Attributes:
        folds: parts of the cross-validation, at most n_symbols.
        C: inverse strength of the logistic regression's squared penalty.
        control_seed: seed of the shuffled labels.
    """

    folds: int = Field(ge=2)
    C: float = Field(gt=0)
    control_seed: int = Field(ge=0, lt=2**32)


def separator_vectors(
    model: Transformer, inputs: Int[Tensor, "list pos"]
) -> list[Float[np.ndarray, "list d_model"]]:
    """Residual stream at the separator after each layer."""
    acts = activations(model, inputs)
    layers = range(model.settings.n_layers)
    return [acts[f"blocks.{i}.hook_resid_post"][:, SEP].double().cpu().numpy() for i in layers]


def centred_norm(vectors: Float[np.ndarray, "list d_model"]) -> float:
    """Mean length of the vectors after each loses its mean entry.

    This is what the next LayerNorm divides by, up to a factor. A short vector is a fragile code,
    because that LayerNorm magnifies each change of the weights.

    >>> centred_norm(np.array([[8.0, 8.0, 2.0, 2.0]]))
    6.0
    """
    centred = vectors - vectors.mean(1, keepdims=True)
    return float(np.linalg.norm(centred, axis=1).mean())


def probe(
    vectors: Float[np.ndarray, "list d_model"],
    lists: Int[np.ndarray, "list 2"],
    index: int,
    settings: ProbeSettings,
    shuffled: bool = False,
) -> float:
    """Cross-validated accuracy of a linear probe that reads number `index` of each list.

    A fold holds out all lists that share the other number. The probe is therefore scored on
    vectors, and on combinations with the other number, that it has never seen.
    """
    # Imported here, because it takes a second and most runs have no probes.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, others = lists[:, index], lists[:, 1 - index]
    if shuffled:
        labels = np.random.default_rng(settings.control_seed).permutation(labels)
    linear = LogisticRegression(C=settings.C, max_iter=SOLVER_STEPS)
    scaled = make_pipeline(StandardScaler(), linear)
    folds = GroupKFold(settings.folds)
    return float(cross_val_score(scaled, vectors, labels, groups=others, cv=folds).mean())


def probe_table(
    vectors: Mapping[str, list[Float[np.ndarray, "list d_model"]]],
    lists: Int[np.ndarray, "list 2"],
    settings: ProbeSettings,
) -> pd.DataFrame:
    """Accuracy of the probes of each number after each layer, with controls and chance.

    Args:
        vectors: "trained" and "untrained" -> separator vectors after each layer.
    """
    chance = 1 / len(np.unique(lists))
    cases = [("trained", False), ("untrained", False), ("trained", True)]
    rows = []
    for weights, shuffled in cases:
        for layer, at_layer in enumerate(vectors[weights]):
            for index in range(LIST_LENGTH):
                accuracy = probe(at_layer, lists, index, settings, shuffled)
                case = {"case": "shuffled labels" if shuffled else weights, "layer": layer}
                number = {"number": POSITIONS[index], "accuracy": accuracy, "chance": chance}
                rows.append(case | number)
    return pd.DataFrame(rows)


def pca_tables(
    vectors: Mapping[str, Float[np.ndarray, "list d_model"]], lists: Int[np.ndarray, "list 2"]
) -> dict[str, pd.DataFrame]:
    """Coordinates of each trained vector, and the share of variance of every component.

    Args:
        vectors: "trained" and "untrained" -> separator vectors after the last layer.
    """
    from sklearn.decomposition import PCA  # imported here for the same reason as in `probe`

    fits = {name: PCA().fit(matrix) for name, matrix in vectors.items()}
    coordinates = fits["trained"].transform(vectors["trained"])[:, :SHOWN]
    points = pd.DataFrame({"d1": lists[:, 0], "d2": lists[:, 1], "sum": lists.sum(1)})
    for i in range(coordinates.shape[1]):
        points[f"pc{i + 1}"] = coordinates[:, i]
    shares = {name: fit.explained_variance_ratio_ for name, fit in fits.items()}
    variance = pd.DataFrame(shares)
    variance.insert(0, "component", range(1, len(variance) + 1))
    return {"pca": points, "pca_variance": variance}


def measure_separator(
    models: Mapping[str, Transformer], inputs: Int[Tensor, "list pos"], settings: ProbeSettings
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tables of principal components and probes of the separator's vector, and key metrics.

    Args:
        models: "trained" and "untrained" -> model.
    """
    lists = inputs[:, :LIST_LENGTH].cpu().numpy()
    vectors = {name: separator_vectors(model, inputs) for name, model in models.items()}
    tables = pca_tables({name: layers[-1] for name, layers in vectors.items()}, lists)
    tables["probes"] = probe_table(vectors, lists, settings)
    metrics = {}
    for name in models:
        metrics[f"explained_variance_{name}"] = float(tables["pca_variance"][name][:SHOWN].sum())
    for layer, at_layer in enumerate(vectors["trained"]):
        metrics[f"separator_norm_layer{layer}"] = centred_norm(at_layer)
    for row in tables["probes"].to_dict("records"):
        name = f"probe_{row['number']}_layer{row['layer']}_{row['case'].replace(' ', '_')}"
        metrics[name] = row["accuracy"]
    return tables, metrics
