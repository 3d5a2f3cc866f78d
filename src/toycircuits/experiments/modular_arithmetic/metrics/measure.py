"""The Fourier circuit behind modular arithmetic, and how it forms during training.

Notation: p the modulus, w_k = 2 pi k / p for k = 1 .. (p - 1) / 2, (a, b) the inputs, c a
candidate answer. A network that has grokked computes sum_k cos(w_k (a + s b - c)), with s = -1 for
subtraction and 1 for addition. Each measure has its control: the other sign, random frequencies,
or noise.

After Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.modular_arithmetic.task import (
    LAST,
    DataSettings,
    accuracy,
    cross_entropy,
)

FIRST_PAIRS = 5  # so many were published
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
        """Raise an `InputError` for an example that is no pair of the task."""
        if max(self.example) >= data.modulus:
            found, allowed = list(self.example), f"numbers below {data.modulus}"
            raise InputError(f"measure.example: found {found}; allowed are {allowed}")


def fourier_basis(p: int) -> tuple[Float[Tensor, "p p"], list[str]]:
    """Orthonormal rows 1, sin 1, cos 1, sin 2, cos 2, ... over Z_p, and their names; p is odd.

    >>> basis, names = fourier_basis(5)
    >>> names
    ['const', 'sin 1', 'cos 1', 'sin 2', 'cos 2']
    >>> torch.allclose(basis @ basis.T, torch.eye(5, dtype=basis.dtype))
    True
    """
    x = torch.arange(p, dtype=torch.float64)
    rows, names = [torch.ones(p, dtype=torch.float64)], ["const"]
    for k in range(1, p // 2 + 1):
        angle = 2 * torch.pi * k * x / p
        rows += [angle.sin(), angle.cos()]
        names += [f"sin {k}", f"cos {k}"]
    basis = torch.stack(rows)
    return basis / basis.norm(dim=1, keepdim=True), names


def frequency_norms(
    matrix: Float[Tensor, "p d"], basis: Float[Tensor, "p p"]
) -> Float[Tensor, " frequency"]:
    """Norm of the sine and cosine rows of each frequency k >= 1 in the transformed matrix."""
    energy = (basis @ matrix.to(basis.dtype)).pow(2).sum(1)
    return (energy[1::2] + energy[2::2]).sqrt()


def find_key_frequencies(
    norms: Float[Tensor, " frequency"], settings: MeasureSettings
) -> list[int]:
    """Frequencies whose norm stands out, by the rule that `MeasureSettings` states.

    In a matrix of noise no norm is far from the median, so that none is key.
    """
    floor = torch.maximum(
        settings.key_median_ratio * norms.median(), settings.key_max_ratio * norms.max()
    )
    return (torch.nonzero((norms >= floor) & (norms > 0)).flatten() + 1).tolist()


def directions(
    labels: Int[Tensor, " pair"], frequencies: Iterable[int], p: int
) -> Float[Tensor, "direction pair"]:
    """Unit vectors cos(w_k x) and sin(w_k x) over all pairs, x = `labels` = a + s b mod p."""
    angles = [2 * torch.pi * k * labels.to(torch.float64) / p for k in frequencies]
    rows = [row for angle in angles for row in (angle.cos(), angle.sin())]
    if not rows:
        return torch.empty(0, len(labels), dtype=torch.float64, device=labels.device)
    stacked = torch.stack(rows)
    return stacked / stacked.norm(dim=1, keepdim=True)


def class_means(
    logits: Float[Tensor, "pair p"], labels: Int[Tensor, " pair"]
) -> Float[Tensor, " p"]:
    """Mean of the logit cube L[a, b, c] over each class of (a + s b - c) mod p."""
    p = logits.shape[1]
    by_label = torch.zeros(p, p, dtype=torch.float64, device=logits.device)
    by_label.index_add_(0, labels, logits.to(torch.float64))
    x = torch.arange(p, device=logits.device)
    return by_label[x, (x - x.unsqueeze(1)) % p].sum(1) / len(labels)


def periodicity(
    logits: Float[Tensor, "pair p"], labels: Int[Tensor, " pair"]
) -> tuple[Float[Tensor, " frequency"], Float[Tensor, " frequency"]]:
    """Projections of the logit cube on unit-norm cos(w_k (a + s b - c)), and cosine similarities.

    All cells of a class of (a + s b - c) share the value of the cosine, so that the projection is
    a Fourier transform of the p class means; no cube of cosines is made.
    """
    p = logits.shape[1]
    spectrum = torch.fft.rfft(class_means(logits, labels)).real[1:]
    coefficients = p**2 * spectrum / (p**3 / 2) ** 0.5
    return coefficients, coefficients / logits.to(torch.float64).norm()


def cosine_logits(
    coefficients: Mapping[int, float], labels: Int[Tensor, " pair"], p: int
) -> Float[Tensor, "pair p"]:
    """Logits made of sum_k coefficient_k cos(w_k (a + s b - c)), each cosine of unit norm."""
    difference = (labels.unsqueeze(1) - torch.arange(p, device=labels.device)) % p
    wave = torch.zeros(p, dtype=torch.float64, device=labels.device)
    x = torch.arange(p, dtype=torch.float64, device=labels.device)
    for k, coefficient in coefficients.items():
        wave += coefficient * (2 * torch.pi * k * x / p).cos() / (p**3 / 2) ** 0.5
    return wave[difference]


def gini(x: Float[Tensor, " n"]) -> float:
    """Gini coefficient: 0 where all values are equal, near 1 where one holds everything.

    >>> gini(torch.ones(4)), gini(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    (0.0, 0.75)
    """
    x = x.to(torch.float64).sort().values
    n = len(x)
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    return ((2 * ranks - n - 1) @ x / (n * x.sum())).item()


def neuron_frequencies(
    acts: Float[Tensor, "pair d_mlp"], p: int
) -> Float[Tensor, "d_mlp frequency"]:
    """Share of each neuron's variance over (a, b) that each frequency explains.

    Frequency k takes the nine terms whose row and column in the two-dimensional Fourier transform
    are the constant, sin k or cos k, less the constant-constant term. (The original study's sum
    visited the constant term alone.) A neuron without variance gets zeros.
    """
    basis = fourier_basis(p)[0].to(acts.device)
    power = _transformed(acts.to(torch.float64).reshape(p, p, -1), basis).pow(2)
    rounding = 1e-24 * power[0, 0]  # a constant neuron's other terms are this small, and not zero
    power[0, 0] = 0
    total = power.sum((0, 1))
    power *= total > rounding
    shares = []
    for k in range(1, p // 2 + 1):
        index = torch.tensor([0, 2 * k - 1, 2 * k], device=acts.device)
        shares.append(power[index][:, index].sum((0, 1)) / total.clamp_min(1e-300))
    return torch.stack(shares, 1)


def _transformed(
    grid: Float[Tensor, "p p n"], basis: Float[Tensor, "p p"]
) -> Float[Tensor, "p p n"]:
    return torch.einsum("yb,xbn->xyn", basis, torch.einsum("xa,abn->xbn", basis, grid))


@dataclass(frozen=True)
class Activations:
    """What the measures read of a model, over all p^2 pairs at the last position.

    Attributes:
        mlp: neuron activations [pair, d_mlp].
        resid_mid: residual stream before the MLP [pair, d_model].
        W_out: [d_mlp, d_model].
        W_U: [d_model, p].
    """

    mlp: Float[Tensor, "pair d_mlp"]
    resid_mid: Float[Tensor, "pair d_model"]
    W_out: Float[Tensor, "d_mlp d_model"]
    W_U: Float[Tensor, "d_model p"]

    @cached_property
    def logits(self) -> Float[Tensor, "pair p"]:
        """The logits of the model."""
        return (self.resid_mid + self.mlp @ self.W_out) @ self.W_U

    @cached_property
    def W_logit(self) -> Float[Tensor, "d_mlp p"]:
        """From neurons to logits."""
        return self.W_out @ self.W_U


def activations(model: Transformer, tokens: Int[Tensor, "pair pos"]) -> Activations:
    """Run the model on all pairs, reading the last position alone."""
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        kept[hook.name] = value[:, -1]

    mid, post = "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post"
    with torch.no_grad():
        model.run_with_hooks(tokens, read=(LAST,), fwd_hooks=[(mid, keep), (post, keep)])
    W_out, W_U = model.get_parameter("blocks.0.mlp.W_out").detach(), model.unembed.W_U.detach()
    return Activations(kept[post], kept[mid], W_out, W_U)


def projected_logits(
    acts: Activations, along: Float[Tensor, "direction pair"]
) -> Float[Tensor, "pair p"]:
    """What the neurons' projections on the unit vectors `along` add to the logits."""
    coefficients = along @ acts.mlp.to(torch.float64)
    return along.T @ (coefficients @ acts.W_logit.to(torch.float64))


def restricted_logits(
    acts: Activations, along: Float[Tensor, "direction pair"]
) -> Float[Tensor, "pair p"]:
    """Logits of the neurons projected on `along`, their mean over all pairs set to the model's."""
    logits = projected_logits(acts, along)
    return logits + acts.logits.to(torch.float64).mean(0) - logits.mean(0)


def excluded_logits(
    acts: Activations, along: Float[Tensor, "direction pair"]
) -> Float[Tensor, "pair p"]:
    """Logits of the model with the projections on `along` taken out of the neurons."""
    return acts.logits.to(torch.float64) - projected_logits(acts, along)


@dataclass(frozen=True)
class Problem:
    """What all measures of one run share: the pairs, their labels and the directions looked at."""

    p: int
    tokens: Int[Tensor, "pair pos"]
    labels: Int[Tensor, " pair"]
    train: Int[Tensor, " train"]
    test: Int[Tensor, " test"]
    key: list[int]
    random: list[int]
    other_sign: Int[Tensor, " pair"]

    @classmethod
    def of(
        cls, data: Mapping[str, Tensor], task: DataSettings, key: list[int], seed: int
    ) -> "Problem":
        """The problem of `data`, its control frequencies drawn among those that are not key."""
        p, tokens = task.modulus, data["tokens"]
        others = np.array([k for k in range(1, p // 2 + 1) if k not in key])
        size = min(len(key), len(others))
        random = np.random.default_rng(seed).choice(others, size, replace=False)
        other_sign = (tokens[:, 0] - task.sign * tokens[:, 1]) % p
        pairs = (tokens, data["labels"], data["train"], data["test"])
        return cls(p, *pairs, key, sorted(random.tolist()), other_sign)

    @cached_property
    def along(self) -> dict[str, Float[Tensor, "direction pair"]]:
        """Directions of the key frequencies, and of the two controls."""
        return {
            "key": directions(self.labels, self.key, self.p),
            "other_sign": directions(self.other_sign, self.key, self.p),
            "random": directions(self.labels, self.random, self.p),
        }


def progress(model: Transformer, acts: Activations, problem: Problem) -> dict[str, float]:
    """Progress measures of one checkpoint: losses in nats, Gini coefficients, squared weights."""
    row: dict[str, float] = {}
    for name in ("train", "test"):
        pairs = getattr(problem, name)
        row[f"{name}_loss"] = cross_entropy(acts.logits[pairs], problem.labels[pairs]).item()
        row[f"{name}_accuracy"] = accuracy(acts.logits[pairs], problem.labels[pairs])
    for name, along in problem.along.items():
        suffix = "" if name == "key" else f"_{name}"
        restricted = restricted_logits(acts, along)[problem.test]
        excluded = excluded_logits(acts, along)[problem.train]
        test_labels, train_labels = problem.labels[problem.test], problem.labels[problem.train]
        row[f"restricted_loss{suffix}"] = cross_entropy(restricted, test_labels).item()
        row[f"excluded_loss{suffix}"] = cross_entropy(excluded, train_labels).item()
    row["restricted_ratio"] = row["restricted_loss"] / row["test_loss"]
    basis = fourier_basis(problem.p)[0].to(acts.mlp.device)
    row["gini_W_E"] = gini(_component_norms(number_embedding(model), basis))
    row["gini_W_logit"] = gini(_component_norms(acts.W_logit.T, basis))
    row["sum_squared_weights"] = sum(
        parameter.detach().to(torch.float64).pow(2).sum().item() for parameter in model.parameters()
    )
    row["logit_norm"] = acts.logits.to(torch.float64).norm().item()
    return row


def number_embedding(model: Transformer) -> Float[Tensor, "p d_model"]:
    """W_E without the row of the "=" token."""
    return model.embed.W_E.detach()[:-1]


def _component_norms(matrix: Tensor, basis: Tensor) -> Tensor:
    return (basis @ matrix.to(basis.dtype)).norm(dim=1)


def residual(cosines: Float[Tensor, " frequency"], key: list[int]) -> float:
    """Share of the logits' norm that the key cosines leave unexplained."""
    explained = sum(cosines[k - 1].item() ** 2 for k in key)
    return max(0.0, 1 - explained) ** 0.5


def find_phases(
    table: pd.DataFrame, uniform_loss: float, settings: MeasureSettings
) -> dict[str, float]:
    """Steps at which the phases end, by a stated rule; NaN for what does not happen.

    Memorisation ends where the test loss is largest. Circuit formation ends at the first step
    after it whose test loss is under that of guessing, ln p. Cleanup ends at the first step from
    there on whose test loss is under `clean_ratio` times the training loss.
    """
    step, train, test = (table[name].to_numpy() for name in ("step", "train_loss", "test_loss"))
    peak = int(test.argmax())
    after = np.arange(len(step)) > peak
    formed = _first(step, after & (test < uniform_loss))
    clean = _first(step, (step >= formed) & (test < settings.clean_ratio * train))
    return {
        "memorised_step": _first(step, train < settings.memorised_below),
        "grokked_step": _first(step, after & (test < settings.grokked_below)),
        "memorisation_end": float(step[peak]),
        "circuit_formation_end": formed,
        "cleanup_end": clean,
    }


def _first(steps: np.ndarray, holds: np.ndarray) -> float:
    return float(steps[holds.argmax()]) if holds.any() else float("nan")


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: Any = None, model: Any = None
) -> pd.DataFrame:
    """The split as it was published: no model has a part in it.

    One row a number. `item`: first_training_pairs (a and b of each in turn), first_training_labels,
    training_pairs (how many), and likewise for test.

    >>> data = {"tokens": torch.tensor([[0, 0, 3], [0, 1, 3], [0, 2, 3]])}
    >>> data |= {"labels": torch.tensor([0, 2, 1])}
    >>> data |= {"train": torch.tensor([2]), "test": torch.tensor([1, 0])}
    >>> task = DataSettings(modulus=3, operation="subtract", train_fraction=0.4, seed=0)
    >>> training_start(data, task)["value"].tolist()
    [0, 2, 1, 1, 0, 1, 0, 0, 2, 0, 2]
    """
    items = {}
    for part, name in (("train", "training"), ("test", "test")):
        first = data[part][:FIRST_PAIRS]
        items[f"first_{name}_pairs"] = data["tokens"][first, :2].flatten().tolist()
        items[f"first_{name}_labels"] = data["labels"][first].tolist()
        items[f"{name}_pairs"] = [len(data[part])]
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, found in items.items()
        for index, value in enumerate(found)
    )


def measure(
    model: Transformer,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, Any]]:
    """All tables of one trained model, and the numbers that sum it up.

    The key frequencies are those of the final weights; `model` holds them at the start and at the
    end.
    """
    device = data["tokens"].device
    basis = fourier_basis(task.modulus)[0].to(device)
    key = find_key_frequencies(frequency_norms(number_embedding(model), basis), settings)
    problem = Problem.of(data, task, key, settings.control_seed)
    rows, cosines = [], []
    for step, state in states:
        model.load_state_dict(state)
        acts = activations(model, problem.tokens)
        row = progress(model, acts, problem)
        _, cosine = periodicity(acts.logits, problem.labels)
        rows.append({"step": step, **row, "residual": residual(cosine, key)})
        cosines.append(
            {"step": step} | {f"k{k + 1}": value for k, value in enumerate(cosine.tolist())}
        )
    tables = {"progress": pd.DataFrame(rows), "cosines_by_step": pd.DataFrame(cosines)}
    phases = find_phases(tables["progress"], float(np.log(task.modulus)), settings)
    tables["phases"] = pd.DataFrame({"phase": phases.keys(), "step": phases.values()})
    noise = torch.Generator().manual_seed(settings.control_seed)
    tables |= embedding_tables(model, problem, noise)
    tables |= attention_tables(model, problem, settings.example)
    tables |= neuron_tables(acts, problem, noise)
    tables["logit_frequencies"] = logit_table(acts, problem, noise)
    tables["key_frequencies"] = pd.DataFrame({"frequency": key}, dtype="int64")
    metrics = {**rows[-1], **phases}
    metrics |= {"uniform_loss": float(np.log(task.modulus)), "n_key": len(key)}
    logits = tables["logit_frequencies"]
    metrics["smallest_key_cosine"] = float(logits.loc[logits["key"], "cosine"].min())
    metrics |= {"initial_train_loss": rows[0]["train_loss"]}
    metrics |= {"initial_test_loss": rows[0]["test_loss"]}
    singular = tables["embedding_svd"]["singular_value"]
    metrics["large_singular_values"] = int((singular > settings.key_max_ratio * singular[0]).sum())
    metrics |= approximation_losses(acts, problem)
    return tables, metrics


def approximation_losses(acts: Activations, problem: Problem) -> dict[str, float]:
    """Loss over all pairs, in nats, of the model and of its logits' key cosines alone."""
    coefficients, _ = periodicity(acts.logits, problem.labels)
    kept = {k: coefficients[k - 1].item() for k in problem.key}
    approximation = cosine_logits(kept, problem.labels, problem.p)
    return {
        "all_pairs_loss": cross_entropy(acts.logits, problem.labels).item(),
        "key_cosines_loss": cross_entropy(approximation, problem.labels).item(),
    }


def embedding_tables(model: Transformer, problem: Problem, noise: torch.Generator) -> Tables:
    """Singular values and vectors of W_E, and W_E in the Fourier basis, with a Gaussian control."""
    W_E = number_embedding(model).to(torch.float64)
    control = torch.randn(W_E.shape, generator=noise, dtype=torch.float64).to(W_E.device)
    control *= W_E.norm() / control.norm()
    basis, names = fourier_basis(problem.p)
    basis = basis.to(W_E.device)
    left, singular, _ = torch.linalg.svd(W_E, full_matrices=False)
    projection = basis @ W_E
    components = pd.DataFrame({"component": names})
    svd = {"singular_value": singular.tolist(), "control": torch.linalg.svdvals(control).tolist()}
    norms = {"norm": projection.norm(dim=1).tolist()}
    norms["control"] = (basis @ control).norm(dim=1).tolist()
    key_rows = [row for k in problem.key for row in (2 * k - 1, 2 * k)]
    unit = projection[key_rows] / projection[key_rows].norm(dim=1, keepdim=True)
    key_names = [names[row] for row in key_rows]
    gram = _wide(unit @ unit.T, key_names)
    gram.insert(0, "component", key_names)
    return {
        "embedding_svd": pd.DataFrame({"index": range(len(singular)), **svd}),
        "embedding_vectors": _wide(left[:, :8]),
        "embedding_fourier": components.assign(**norms),
        "embedding_projection": pd.concat([components, _wide(projection)], axis=1),
        "embedding_gram": gram,
        "fourier_basis": pd.concat([components, _wide(basis)], axis=1),
    }


def attention_tables(model: Transformer, problem: Problem, example: tuple[int, int]) -> Tables:
    """Attention from "=": mean over all pairs, one example, and a p x p map of a -> "=" a head."""
    p = problem.p
    kept: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: Any) -> None:
        kept["pattern"] = pattern[:, :, -1].to(torch.float64)

    with torch.no_grad():
        hooks = [("blocks.0.attn.hook_pattern", keep)]
        model.run_with_hooks(problem.tokens, read=(LAST,), fwd_hooks=hooks)
    pattern = kept["pattern"]
    row = example[0] * p + example[1]
    rows = [
        {"head": head, "key": key, "mean": mean, "example": one}
        for head in range(pattern.shape[1])
        for key, mean, one in zip(
            ("a", "b", "="),
            pattern.mean(0)[head].tolist(),
            pattern[row, head].tolist(),
            strict=True,
        )
    ]
    maps = []
    for head in range(pattern.shape[1]):
        table = _wide(pattern[:, head, 0].reshape(p, p), [f"b{b}" for b in range(p)])
        table.insert(0, "head", head)
        table.insert(1, "a", range(p))
        maps.append(table)
    return {"attention": pd.DataFrame(rows), "attention_maps": pd.concat(maps, ignore_index=True)}


def neuron_tables(acts: Activations, problem: Problem, noise: torch.Generator) -> Tables:
    """Frequencies of the neurons, whether they are key, and W_logit in the Fourier basis.

    The control is noise with the shape of the activations.
    """
    p, device = problem.p, acts.mlp.device
    basis, names = fourier_basis(p)
    shares = neuron_frequencies(acts.mlp, p)
    control = neuron_frequencies(torch.randn(acts.mlp.shape, generator=noise).to(device), p)
    neurons = pd.DataFrame(
        {
            "neuron": range(len(shares)),
            "frequency": (shares.argmax(1) + 1).tolist(),
            "share": shares.max(1).values.tolist(),
            "key": [k + 1 in problem.key for k in shares.argmax(1).tolist()],
            "control": control.max(1).values.tolist(),
        }
    )
    grid = acts.mlp.to(torch.float64).reshape(p, p, -1)
    power = _transformed(grid - grid.mean((0, 1)), basis.to(device)).pow(2).mean(2).sqrt()
    norms = _component_norms(acts.W_logit.T, basis.to(device)).tolist()
    return {
        "neurons": neurons,
        "neuron_shares": _wide(shares, [f"k{k + 1}" for k in range(p // 2)]),
        "neuron_fourier": pd.concat([pd.DataFrame({"component": names}), _wide(power)], axis=1),
        "logit_weights_fourier": pd.DataFrame({"component": names, "norm": norms}),
    }


def logit_table(acts: Activations, problem: Problem, noise: torch.Generator) -> pd.DataFrame:
    """Coefficient and cosine similarity of each frequency; the other sign and noise as controls."""
    coefficients, cosines = periodicity(acts.logits, problem.labels)
    random = torch.randn(acts.logits.shape, generator=noise).to(acts.logits.device)
    columns = {
        "frequency": range(1, problem.p // 2 + 1),
        "key": [k + 1 in problem.key for k in range(problem.p // 2)],
        "coefficient": coefficients.tolist(),
        "cosine": cosines.tolist(),
        "other_sign": periodicity(acts.logits, problem.other_sign)[1].tolist(),
        "noise": periodicity(random, problem.labels)[1].tolist(),
    }
    return pd.DataFrame(columns)


def _wide(matrix: Tensor, columns: list[str] | None = None) -> pd.DataFrame:
    """A matrix as a table; rounded, since it is only looked at."""
    names = columns if columns is not None else [f"x{i}" for i in range(matrix.shape[1])]
    return pd.DataFrame(matrix.detach().cpu().numpy().round(5), columns=names)
