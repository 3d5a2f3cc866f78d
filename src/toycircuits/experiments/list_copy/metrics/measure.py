"""Attention patterns, what is written, and what the separator token holds.

Its vector's principal components and linear probes come with controls: the same network before
training, and for the probes also labels that are shuffled.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.transformer import Transformer, rows_needed
from toycircuits.experiments.list_copy.task import (
    LIST_LENGTH,
    OUTPUTS,
    POSITIONS,
    SEP,
    DataSettings,
    TrainSettings,
    batches,
    evaluate,
    evaluation_lists,
    list_row,
    written,
)

Tables = dict[str, pd.DataFrame]
SHOWN = 3  # principal components with coordinates: as many as a picture has dimensions
QUANTILES = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}
FIRST_LISTS = 5  # as many as were printed
EPOCHS = 10  # after so many, new orders have left hardly a list out, and a repeated one the same
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
        probe: how to probe the separator's vector, or null to leave that vector alone.
    """

    sample: tuple[int, int]
    probe: ProbeSettings | None

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for a sample that is no list, or more folds than numbers."""
        list_row(self.sample, data, "measure.sample")
        if self.probe is not None and self.probe.folds > data.n_symbols:
            found, allowed = self.probe.folds, f"2 to {data.n_symbols}"
            raise InputError(f"measure.probe.folds: found {found}; allowed: {allowed}")


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: TrainSettings, model: Any = None
) -> pd.DataFrame:
    """What a training is given, as it was published: no model has a part in it.

    One row a number. `item`: first_lists (d1 and d2 of each in turn), training_lists,
    held_out_lists, batches_per_epoch, and unseen_lists: how many of the training lists have stood
    in no batch after `index` epochs.
    """
    held_out = len(data["validation"]) if "validation" in data else 0
    rows = torch.arange(len(data["inputs"]))
    order = torch.Generator().manual_seed(train.batch_seeds[0])
    stream = batches({"inputs": rows, "targets": rows}, task, train, order)
    seen = torch.zeros(len(rows), dtype=torch.bool)
    unseen = [len(rows)]
    for _ in range(EPOCHS):
        for _ in range(stream.per_epoch):
            seen[stream.next()["inputs"]] = True
        unseen.append(int((~seen).sum()))
    items = {
        "first_lists": data["inputs"][:FIRST_LISTS, :LIST_LENGTH].flatten().tolist(),
        "training_lists": [len(rows)],
        "held_out_lists": [held_out],
        "batches_per_epoch": [stream.per_epoch],
        "unseen_lists": unseen,
    }
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, found in items.items()
        for index, value in enumerate(found)
    )


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


def patterns_of(
    model: Transformer, inputs: Int[Tensor, "list pos"]
) -> Float[np.ndarray, "layer list head query key"]:
    """Attention patterns as the model computes them."""
    acts = activations(model, inputs)
    layers = range(model.settings.n_layers)
    patterns = [acts[f"blocks.{i}.attn.hook_pattern"].double().cpu().numpy() for i in layers]
    return np.stack(patterns)


def pattern_table(
    model: Transformer, subsets: Mapping[str, Int[Tensor, "list pos"]]
) -> pd.DataFrame:
    """Mean attention pattern over each subset of lists.

    One row a cell; a cell that the mask forbids has no weight.
    """
    allowed = np.array(model.settings.allowed)
    means = {name: patterns_of(model, inputs).mean(1) for name, inputs in subsets.items()}
    rows = []
    for layer in range(model.settings.n_layers):
        for subset, mean in means.items():
            weights = np.where(allowed, mean[layer], np.nan)
            for (head, query, key), weight in np.ndenumerate(weights):
                cell = {"query": POSITIONS[query], "key": POSITIONS[key], "weight": weight}
                rows.append({"subset": subset, "layer": layer, "head": head, **cell})
    return pd.DataFrame(rows)


def pattern_ranges(
    patterns: Float[np.ndarray, "layer list head query key"], allowed: list[list[bool]]
) -> pd.DataFrame:
    """How each attention weight varies over the lists, one row a cell.

    Only of queries that an output depends on (the last layer's separator is read by none), and
    that may attend to several keys: the weight of a single key is always 1.
    """
    rows = []
    for layer, needed in enumerate(rows_needed(allowed, OUTPUTS, len(patterns))):
        for query in (query for query in needed.queries if sum(allowed[query]) > 1):
            for head, key in np.ndindex(patterns.shape[2], len(allowed)):
                if allowed[query][key]:
                    weights = patterns[layer, :, head, query, key]
                    cell = {"query": POSITIONS[query], "key": POSITIONS[key]}
                    rows.append({"layer": layer, "head": head, **cell, **quantiles(weights)})
    return pd.DataFrame(rows)


def quantiles(values: Float[np.ndarray, " list"]) -> dict[str, float]:
    """Mean and quantiles.

    >>> quantiles(np.array([0.0, 0.5, 1.0]))["median"]
    0.5
    """
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return {"mean": float(values.mean())} | dict(zip(QUANTILES, quantiles.tolist(), strict=True))


def leaked_attention(patterns: Float[np.ndarray, "layer list head query key"]) -> float:
    """The most attention that any output gives to the numbers, in any layer, head and list."""
    return float(patterns[..., list(OUTPUTS), :LIST_LENGTH].sum(-1).max())


def outcome_table(
    outputs: Int[np.ndarray, "list 2"], lists: Int[np.ndarray, "list 2"]
) -> pd.DataFrame:
    """How often each kind of copy is written of a list of two different numbers.

    >>> lists = np.array([[1, 2], [1, 2], [1, 2], [3, 3]])
    >>> table = outcome_table(np.array([[1, 2], [2, 1], [1, 1], [3, 3]]), lists)
    >>> table["share"].round(3).tolist(), table["outcome"].tolist()[:3]
    ([0.333, 0.333, 0.333, 0.0, 0.0], ['d1 d2', 'd2 d1', 'd1 d1'])
    """
    differ = lists[:, 0] != lists[:, 1]
    outputs, (d1, d2) = outputs[differ], lists[differ].T
    wanted = {"d1 d2": (d1, d2), "d2 d1": (d2, d1), "d1 d1": (d1, d1), "d2 d2": (d2, d2)}
    shares = {name: (outputs == np.stack(pair, 1)).all(1).mean() for name, pair in wanted.items()}
    shares["other"] = 1 - sum(shares.values())
    return pd.DataFrame({"outcome": shares.keys(), "share": shares.values()})


def architecture_table(model: Transformer) -> pd.DataFrame:
    """What tells the model from others, and how many parameters it has; one row."""
    settings, parameters = model.settings, list(model.parameters())
    row = {
        "n_layers": settings.n_layers,
        "d_model": settings.d_model,
        "normalization": settings.normalization or "none",
        "use_bias": settings.use_bias,
        "freeze_W_V": settings.freeze_W_V,
        "freeze_W_O": settings.freeze_W_O,
        "parameters": sum(one.numel() for one in parameters),
        "trainable": sum(one.numel() for one in parameters if one.requires_grad),
    }
    return pd.DataFrame([row])


def measure_copying(
    model: Transformer, lists: Mapping[str, Tensor]
) -> tuple[Tables, dict[str, float]]:
    """What the layout `in_place` is asked beside its patterns: leaks, their ranges, outcomes."""
    patterns = patterns_of(model, lists["inputs"])
    with torch.no_grad():
        outputs = written(model, **lists).cpu().numpy()
    numbers = lists["inputs"][:, :LIST_LENGTH].cpu().numpy()
    tables = {
        "architecture": architecture_table(model),
        "pattern_ranges": pattern_ranges(patterns, model.settings.allowed),
        "outcomes": outcome_table(outputs, numbers),
    }
    metrics = {"leaked_attention": leaked_attention(patterns)}
    for name in ("parameters", "trainable"):
        metrics[name] = float(tables["architecture"][name].item())
    for layer, part in tables["pattern_ranges"].groupby("layer"):
        metrics[f"pattern_range_layer{layer}"] = float((part["max"] - part["min"]).max())
    return tables, metrics


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
    # Here and below, not above: most runs measure no probe, and scikit-learn loads for a second.
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
    from sklearn.decomposition import PCA

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
) -> tuple[Tables, dict[str, float]]:
    """Principal components of the separator's vector, and linear probes of it.

    Args:
        models: "trained" and "untrained" -> model.
    """
    lists = inputs[:, :LIST_LENGTH].cpu().numpy()
    vectors = {name: separator_vectors(one, inputs) for name, one in models.items()}
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


def measure(
    model: Transformer,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, float]]:
    """All tables of one trained model, and the numbers that sum it up.

    The untrained network is the first checkpoint.
    """
    sample = list_row(settings.sample, task, "measure.sample")
    inputs = data["all_inputs"]
    name, lists = evaluation_lists(data)
    subsets = {str(settings.sample): inputs[sample : sample + 1], name: lists["inputs"]}
    tables = {"patterns": pattern_table(model, subsets)}
    with torch.no_grad():
        metrics = evaluate(model, data)
    parts = []
    if task.layout == "in_place":
        parts.append(measure_copying(model, lists))
    if settings.probe is not None:
        untrained = copy.deepcopy(model)
        untrained.load_state_dict(dict(next(iter(states))[1]))
        models = {"trained": model, "untrained": untrained}
        parts.append(measure_separator(models, inputs, settings.probe))
    for more_tables, more_metrics in parts:
        tables |= more_tables
        metrics |= more_metrics
    return tables, metrics
