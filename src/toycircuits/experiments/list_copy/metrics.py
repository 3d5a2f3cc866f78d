"""What the separator token holds: its vector's principal components, and linear probes of it.

Each number comes with controls: the same network before training, and for the probes also labels
that are shuffled.
"""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from toycircuits.config import InputError, Settings
from toycircuits.experiments.list_copy.task import (
    LIST_LENGTH,
    POSITIONS,
    SEP,
    DataSettings,
    evaluate,
    list_row,
)
from toycircuits.transformer import Transformer

Tables = dict[str, pd.DataFrame]
SHOWN = 3  # principal components with coordinates: as many as a picture has dimensions
SOLVER_STEPS = 10_000  # far more than the solver takes; it warns when it does not converge


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


class MeasureSettings(Settings):
    """What to measure.

    Attributes:
        sample: the list whose attention patterns are shown.
    """

    sample: tuple[int, int]
    probe: ProbeSettings


def activations(model: Transformer, inputs: Int[Tensor, "list pos"]) -> dict[str, Tensor]:
    """Attention patterns and residual streams after each layer, by hook name."""
    kept = ("attn.hook_pattern", "hook_resid_post")
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith(kept))
    return dict(cache)


def separator_vectors(
    model: Transformer, inputs: Int[Tensor, "list pos"]
) -> list[Float[np.ndarray, "list d_model"]]:
    """Residual stream at the separator after each layer."""
    acts = activations(model, inputs)
    layers = range(model.settings.n_layers)
    return [acts[f"blocks.{i}.hook_resid_post"][:, SEP].double().cpu().numpy() for i in layers]


def centred_norm(vectors: Float[np.ndarray, "list d_model"]) -> float:
    """Mean length of the vectors less their mean entry, in proportion to what LayerNorm divides by.

    A short vector is a fragile code: the next LayerNorm magnifies each change of the weights.

    >>> centred_norm(np.array([[8.0, 8.0, 2.0, 2.0]]))
    6.0
    """
    centred = vectors - vectors.mean(1, keepdims=True)
    return float(np.linalg.norm(centred, axis=1).mean())


def pattern_table(
    model: Transformer, inputs: Int[Tensor, "list pos"], sample: int, name: str
) -> pd.DataFrame:
    """Attention patterns of the list in row `sample`, called `name`, and their mean over all.

    One row a cell; a cell that the mask forbids has no weight.
    """
    acts = activations(model, inputs)
    allowed = torch.tensor(model.settings.allowed)
    rows = []
    for layer in range(model.settings.n_layers):
        pattern = acts[f"blocks.{layer}.attn.hook_pattern"].double().cpu()
        pattern = pattern.masked_fill(~allowed, torch.nan)
        for subset, weights in {name: pattern[sample], "all lists": pattern.mean(0)}.items():
            for (head, query, key), weight in np.ndenumerate(weights.numpy()):
                cell = {"query": POSITIONS[query], "key": POSITIONS[key], "weight": weight}
                rows.append({"subset": subset, "layer": layer, "head": head, **cell})
    return pd.DataFrame(rows)


def probe(
    vectors: Float[np.ndarray, "list d_model"],
    lists: Int[np.ndarray, "list 2"],
    index: int,
    settings: ProbeSettings,
    shuffled: bool = False,
) -> float:
    """Cross-validated accuracy of reading number `index` of each list linearly from its vector.

    Lists that share the other number are held out together: a probe is only scored where it
    cannot have learnt a vector by heart, nor a combination with a number that it has seen.
    """
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
    """Accuracy of probing each number, at each layer, with its controls.

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
                rows.append(
                    case | {"number": POSITIONS[index], "accuracy": accuracy, "chance": chance}
                )
    return pd.DataFrame(rows)


def pca_tables(
    vectors: Mapping[str, Float[np.ndarray, "list d_model"]], lists: Int[np.ndarray, "list 2"]
) -> Tables:
    """Coordinates of each trained vector, and the share of variance of every component."""
    fits = {name: PCA().fit(matrix) for name, matrix in vectors.items()}
    coordinates = fits["trained"].transform(vectors["trained"])[:, :SHOWN]
    points = pd.DataFrame({"d1": lists[:, 0], "d2": lists[:, 1], "sum": lists.sum(1)})
    for i in range(coordinates.shape[1]):
        points[f"pc{i + 1}"] = coordinates[:, i]
    shares = {name: fit.explained_variance_ratio_ for name, fit in fits.items()}
    variance = pd.DataFrame(shares)
    variance.insert(0, "component", range(1, len(variance) + 1))
    return {"pca": points, "pca_variance": variance}


def measure(
    model: Transformer,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, float]]:
    """All tables of one trained model, and the numbers that sum it up.

    The untrained network is the first checkpoint.

    Raises:
        InputError: the sample is no list of the task, or there are more folds than numbers.
    """
    if settings.probe.folds > task.n_symbols:
        found = settings.probe.folds
        raise InputError(f"measure.probe.folds: found {found}; allowed: 2 to {task.n_symbols}")
    sample = list_row(settings.sample, task, "measure.sample")
    inputs = data["all_inputs"]
    lists = inputs[:, :LIST_LENGTH].cpu().numpy()
    untrained = copy.deepcopy(model)
    untrained.load_state_dict(dict(next(iter(states))[1]))
    models = {"trained": model, "untrained": untrained}
    vectors = {name: separator_vectors(one, inputs) for name, one in models.items()}
    tables = pca_tables({name: layers[-1] for name, layers in vectors.items()}, lists)
    tables["patterns"] = pattern_table(model, inputs, sample, str(settings.sample))
    tables["probes"] = probe_table(vectors, lists, settings.probe)
    with torch.no_grad():
        metrics = evaluate(model, data)
    for name in models:
        metrics[f"explained_variance_{name}"] = float(tables["pca_variance"][name][:SHOWN].sum())
    for layer, at_layer in enumerate(vectors["trained"]):
        metrics[f"separator_norm_layer{layer}"] = centred_norm(at_layer)
    for row in tables["probes"].to_dict("records"):
        name = f"probe_{row['number']}_layer{row['layer']}_{row['case'].replace(' ', '_')}"
        metrics[name] = row["accuracy"]
    return tables, metrics
