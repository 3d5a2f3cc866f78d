"""Which model of a run somebody's weights fit: sizes, masks, frozen matrices, variants."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.core.config import InputError, Run, find_run, scales
from toycircuits.core.messages import quoted
from toycircuits.core.slices import load_model
from toycircuits.core.train_run import RunSettings, read_settings
from toycircuits.core.trained_models import build_model
from toycircuits.core.transformer import Transformer
from toycircuits.foreign import weights

State: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """A model of a run with somebody's weights in it."""

    variant: str
    model: HookedRootModule
    notes: tuple[str, ...]
    n_frozen: int


def fit_run(state: State, run: Run, variant: str | None, params: Mapping[str, Any]) -> Fit:
    """The model of `run` that `state` fits.

    Of several variants, that with the most frozen parameters is taken: weights at the identity fit
    a model that trains them, too.

    Raises:
        InputError: it fits none, or several.
    """
    if variant is not None and variant not in run.variants:
        allowed = ", ".join(filter(None, run.variants)) or "none, this run has no variants"
        raise InputError(f"variant: found {quoted(variant)}; allowed: {allowed}")
    settings = read_settings(run)
    fits, problems = [], []
    for name in run.variants if variant is None else (variant,):
        try:
            fits.append(_load(state, run, settings, name))
        except InputError as error:
            problems.append(str(error))
    if not fits:
        of = f"{run.name} at the scale {run.scale}"
        raise InputError(f"{problems[0]} ({of}){_others(state, run, params)}")
    most = max(fit.n_frozen for fit in fits)
    fits = [fit for fit in fits if fit.n_frozen == most]
    if len(fits) > 1:
        names = ", ".join(fit.variant for fit in fits)
        raise InputError(f"these weights fit several variants of {run.name}; name one: {names}")
    return fits[0]


def _load(state: State, run: Run, settings: RunSettings, variant: str) -> Fit:
    """The model of this variant with `state` in it.

    Raises:
        InputError: `state` does not fit.
    """
    metadata = {
        **{"slice": run.entry.slice, "data": settings.data.model_dump()},
        "model": settings.models[variant].model_dump(),
    }
    architecture = load_model(run.entry.slice)
    generator = torch.Generator().manual_seed(0)
    outline = architecture.build(settings.models[variant], settings.data, generator)
    expected = dict(outline.named_parameters())
    named, masks = weights.without_buffers(weights.standard_names(state, expected))
    named, is_folded = weights.with_layer_norm(named, expected)
    named = weights.as_float32(named)
    frozen = outline.frozen() if isinstance(outline, Transformer) else {}
    if problem := weights.misfit(named, expected, frozen):
        raise InputError(problem)
    notes = [*_mask_notes(masks, outline)]
    if is_folded:
        text = "has no weights of LayerNorm, as if they were folded in; weight 1 and bias 0 are"
        notes.append(f"the file {text} used")
    model, _ = build_model(named, metadata, Path(run.name))
    return Fit(variant, model, tuple(notes), len(frozen))


def _mask_notes(masks: State, model: Any) -> Iterator[str]:
    """What to say about the masks in a file.

    `HookedTransformer` saves its causal mask in every file, also if hooks put another mask on the
    scores. A causal mask in the file therefore says nothing.

    Raises:
        InputError: a mask is neither causal nor that of the model.
    """
    for name, mask in masks.items():
        layer = int(name.split(".")[1])
        allowed = torch.tensor(model.settings.allowed[layer]) if layer < len(model.blocks) else None
        found = mask.squeeze().bool()
        if allowed is None or found.shape != allowed.shape:
            raise InputError(f"{name}: found a mask of shape {tuple(mask.shape)}")
        if torch.equal(found, allowed):
            continue
        if not torch.equal(found, torch.ones_like(found).tril()):
            drawn = "/".join("".join(".1"[int(cell)] for cell in row) for row in found)
            expected = "/".join("".join(".1"[int(cell)] for cell in row) for row in allowed)
            raise InputError(f"{name}: found {drawn}; expected {expected}, or a causal mask")
        if layer == 0:
            yield (
                "the file has TransformerLens's causal mask, which it saves whatever mask hooks "
                "applied; the masks of the run are used"
            )


def _others(state: State, run: Run, params: Mapping[str, Any]) -> str:
    """Which runs and scales `state` fits instead, as the end of a message."""
    found = []
    for scale in scales(params):
        for name in params["runs"]:
            other = find_run({**params, "scale": scale}, name)
            if other.entry.slice == run.entry.slice and _fits(state, other):
                found.append(f"--run {name} --scale {scale}")
    return f"; they fit {', '.join(found[:3])}" if found else "; they fit no run"


def _fits(state: State, run: Run) -> bool:
    """Whether `state` fits a variant of `run`."""
    settings = read_settings(run)
    for variant in run.variants:
        try:
            _load(state, run, settings, variant)
        except InputError:
            continue
        return True
    return False
