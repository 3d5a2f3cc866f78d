"""Which model of a run somebody's weights fit: sizes, masks, frozen matrices, variants."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
    """A model of a run with somebody's weights in it.

    Attributes:
        settings: those of the run.
        notes: what a reader has to know about the weights.
        is_folded: whether the weights lack those of LayerNorm, which the variant has.
    """

    settings: RunSettings
    variant: str
    model: HookedRootModule
    notes: tuple[str, ...]
    is_folded: bool


@dataclass(frozen=True)
class _Match:
    """Weights that fit a variant of a run.

    Attributes:
        state: the weights under this project's names.
        is_folded: as of `Fit`.
        n_frozen: number of parameters that the variant freezes.
    """

    variant: str
    state: State
    notes: tuple[str, ...]
    is_folded: bool
    n_frozen: int

    @property
    def rank(self) -> tuple[bool, int]:
        """How much the match says about the weights; of several, the highest is taken."""
        return not self.is_folded, self.n_frozen


def fit_run(state: State, run: Run, variant: str | None, params: Mapping[str, Any]) -> Fit:
    """The model of `run` that `state` fits.

    Of several variants, one without LayerNorm is taken if `state` has no weights of LayerNorm, and
    then that with the most frozen parameters: weights at the identity fit a model that trains
    them, too.

    Raises:
        InputError: it fits none, or several.
    """
    if variant is not None and variant not in run.variants:
        allowed = ", ".join(filter(None, run.variants)) or "none, this run has no variants"
        raise InputError(f"variant: found {quoted(variant)}; allowed: {allowed}")
    weights.check_tensors(state)
    settings = read_settings(run)
    matches, problems = [], []
    for name in run.variants if variant is None else (variant,):
        try:
            matches.append(_match(state, run, settings, name))
        except InputError as error:
            of = f"variant {name} of {run.name}" if name else run.name
            problems.append(f"{error} ({of} at the scale {run.scale})")
    if not matches:
        raise InputError(f"{problems[0]}{_others(state, run, params)}")
    match = _chosen(matches, run)
    metadata = {
        **{"slice": run.entry.slice, "data": settings.data.model_dump()},
        "model": settings.models[match.variant].model_dump(),
    }
    model, _ = build_model(match.state, metadata, Path(run.name))
    return Fit(settings, match.variant, model, match.notes, match.is_folded)


def _chosen(matches: Sequence[_Match], run: Run) -> _Match:
    """The match that says the most about the weights.

    Raises:
        InputError: several say the same.
    """
    best = max(match.rank for match in matches)
    chosen, *more = [match for match in matches if match.rank == best]
    if more:
        names = ", ".join(match.variant for match in (chosen, *more))
        raise InputError(f"these weights fit several variants of {run.name}; name one: {names}")
    folded = [match.variant for match in matches if match.is_folded and not chosen.is_folded]
    if folded:
        text = (
            "the file has no weights of LayerNorm, so they are taken as of a model without it; if"
        )
        note = f"{text} they were folded in, name a variant with LayerNorm: {', '.join(folded)}"
        return replace(chosen, notes=(*chosen.notes, note))
    return chosen


def _match(state: State, run: Run, settings: RunSettings, variant: str) -> _Match:
    """`state` as weights of this variant.

    Raises:
        InputError: `state` does not fit.
    """
    build = load_model(run.entry.slice).build
    generator = torch.Generator().manual_seed(0)
    outline = build(settings.models[variant], settings.data, generator)
    expected = dict(outline.named_parameters())
    named = weights.standard_names(state, expected)
    notes: list[str] = []
    frozen: State = {}
    if isinstance(outline, Transformer):
        named, masks = weights.without_buffers(named)
        notes, frozen = _mask_notes(masks, outline), outline.frozen()
    named, is_folded = weights.with_layer_norm(named, expected)
    if problem := weights.misfit(named, expected, frozen):
        raise InputError(problem)
    named = weights.as_float32(named)
    if problem := weights.not_frozen(named, frozen):
        raise InputError(problem)
    if is_folded:
        text = "has no weights of LayerNorm, as if they were folded in; weight 1 and bias 0 are"
        notes.append(f"the file {text} used")
    return _Match(variant, named, tuple(notes), is_folded, len(frozen))


def _mask_notes(masks: State, model: Transformer) -> list[str]:
    """What to say about the masks in a file.

    `HookedTransformer` saves its causal mask in every file, also if hooks put another mask on the
    scores. A causal mask in the file therefore says nothing.

    Raises:
        InputError: a mask is neither causal nor that of the model.
    """
    masks_of_run = model.settings.allowed
    is_ignored = False
    for name, mask in masks.items():
        layer = int(name.split(".")[1])
        if layer >= len(masks_of_run):
            raise InputError(f"{name}: found, but such a model has {len(masks_of_run)} layers")
        allowed = torch.tensor(masks_of_run[layer], device="cpu")
        found = mask.detach().cpu().squeeze().bool()
        if found.shape != allowed.shape:
            shapes = f"found {tuple(mask.shape)}; expected {tuple(allowed.shape)}"
            raise InputError(f"{name}: shape: {shapes}")
        if torch.equal(found, allowed):
            continue
        if not torch.equal(found, torch.ones_like(found).tril()):
            text = f"found {_drawn(found)}; expected {_drawn(allowed)}, or a causal mask"
            raise InputError(f"{name}: {text}")
        is_ignored = True
    text = "TransformerLens saved a causal mask in the file, as it does even if hooks apply another"
    return [f"{text} mask; the masks of the run are used"] if is_ignored else []


def _drawn(mask: Tensor) -> str:
    """A mask in one line: its rows as settings write them, with a slash between two."""
    return "/".join("".join(".1"[int(cell)] for cell in row) for row in mask)


def _others(state: State, run: Run, params: Mapping[str, Any]) -> str:
    """Which runs and scales `state` fits instead, as the end of a message."""
    found: list[str] = []
    for scale in scales(params):
        for name in params["runs"]:
            with suppress(InputError):  # the settings of another run may have faults, too
                other = find_run({**params, "scale": scale}, name)
                variant = _fitting(state, other) if other.entry.slice == run.entry.slice else None
                if variant is not None:
                    is_same = (name, scale) == (run.name, run.scale)
                    remark = f" --variant {variant}" if is_same else ""
                    found.append(f"--run {name} --scale {scale}{remark}")
    return f"; they fit {', '.join(found[:3])}" if found else "; they fit no run"


def _fitting(state: State, run: Run) -> str | None:
    """The first variant of `run` that `state` fits; None if there is none."""
    settings = read_settings(run)
    for variant in run.variants:
        with suppress(InputError):
            return _match(state, run, settings, variant).variant
    return None
