"""`transformer_lens.patching` on the models of all slices with tokens, against edits by hand."""

from itertools import product
from typing import Any

import pytest
import torch
from made_lens import HAVE_MLP, SLICES, TWO_LAYERS, WITHOUT_MLP, Made, make
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache, patching
from transformer_lens.utilities import get_act_name

SWEEPS = [
    name
    for name in dir(patching)
    if name.startswith("get_act_patch_") and not name.endswith("every") and "direct" not in name
]
OF_MLPS = ["get_act_patch_resid_mid", "get_act_patch_mlp_out"]
HEADS = ["out", "q", "k", "v", "pattern"]
EVERY = {
    "block_every": [f"get_act_patch_{name}" for name in ("resid_pre", "attn_out", "mlp_out")],
    "attn_head_all_pos_every": [f"get_act_patch_attn_head_{name}_all_pos" for name in HEADS],
    "attn_head_by_pos_every": [f"get_act_patch_attn_head_{name}_by_pos" for name in HEADS],
}
# Order of the axes of an activation, after that of the batch.
PATTERN, VECTOR = ("head", "dest_pos", "src_pos"), ("pos", "head")


def metric(logits: Tensor) -> Tensor:
    """Different for each position and token, so that a patch at any place changes it."""
    weights = torch.arange(1, logits[0].numel() + 1, dtype=logits.dtype).reshape(logits.shape[1:])
    return (logits * weights.cos()).sum((1, 2)).mean()


@pytest.fixture(params=SLICES)
def made(request: pytest.FixtureRequest) -> Made:
    return make(request.param)


def cache_of(made: Made, tokens: Tensor) -> ActivationCache:
    with torch.no_grad():
        return made.model.run_with_cache(tokens)[1]


def by_hand(made: Made, activation: str, axes: tuple[str, ...]) -> Tensor:
    """The metric after a clean activation, at each place along `axes`, replaced a corrupted one."""
    cfg = made.model.cfg
    clean, corrupted = cache_of(made, made.clean), cache_of(made, made.corrupted)
    axes = tuple("head" if axis == "head_index" else axis for axis in axes)
    order = PATTERN if activation == "pattern" else VECTOR
    sizes = {"layer": cfg.n_layers, "head": cfg.n_heads}
    shape = [sizes.get(axis, made.last + 1) for axis in axes]
    found = torch.zeros(shape)
    for index in product(*map(range, shape)):
        at = dict(zip(axes, index, strict=True))
        name = get_act_name(activation, at["layer"])
        place = (slice(None), *(at.get(axis, slice(None)) for axis in order))
        edited = corrupted[name].clone()
        place = place[: edited.ndim]
        if activation not in ("pattern", "q", "k", "v", "z"):
            place = place[:2]  # no heads
        edited[place] = clean[name][place]
        with torch.no_grad():
            hooks = [(name, lambda x, hook, edited=edited: edited)]
            found[index] = metric(made.model.run_with_hooks(made.corrupted, fwd_hooks=hooks))
    return found


@pytest.mark.parametrize("name", SWEEPS)
def test_each_sweep_is_what_edits_by_hand_give(made: Made, name: str) -> None:
    patch = getattr(patching, name)
    clean = cache_of(made, made.clean)
    if made.model.cfg.attn_only and name in OF_MLPS:
        with pytest.raises(KeyError, match="this model has no MLPs"):
            patch(made.model, made.corrupted, clean, metric)
        return
    found = patch(made.model, made.corrupted, clean, metric)
    expected = by_hand(made, patch.keywords["activation_name"], patch.keywords["index_axis_names"])
    assert_close(found, expected)
    with torch.no_grad():
        unpatched = metric(made.model(made.corrupted))
    assert (expected - unpatched).abs().max() > 1e-3  # the patches do something


@pytest.mark.parametrize("name", EVERY)
def test_sweeps_over_every_kind_are_the_single_sweeps(made: Made, name: str) -> None:
    clean = cache_of(made, made.clean)
    every = getattr(patching, f"get_act_patch_{name}")
    if made.model.cfg.attn_only and name == "block_every":
        with pytest.raises(KeyError, match="hook_mlp_out: this model has no MLPs"):
            every(made.model, made.corrupted, clean, metric)
        return
    found = every(made.model, made.corrupted, clean, metric)
    for kind, single in zip(found, EVERY[name], strict=True):
        expected = getattr(patching, single)(made.model, made.corrupted, clean, metric)
        by_pos = single == "get_act_patch_attn_head_pattern_by_pos"
        assert_close(kind, expected.transpose(1, 2) if by_pos else expected)


def test_values_of_each_example_and_the_baseline(made: Made) -> None:
    def each(logits: Tensor) -> Tensor:
        return logits[:, made.last, 0]

    clean, options = cache_of(made, made.clean), {"reduce": "none", "baseline": True}
    sweep: Any = patching.get_act_patch_attn_out
    result = sweep(made.model, made.corrupted, clean, each, **options)
    with torch.no_grad():
        assert_close(result.baseline, each(made.model(made.corrupted)).float())
    mean = sweep(made.model, made.corrupted, clean, lambda logits: each(logits).mean())
    assert_close(result.mean(), mean)


def with_added(made: Made, name: str, head: int, added: Tensor) -> Tensor:
    """Metric of the corrupted tokens after `added` is added at one head of the activation."""

    def hook(x: Tensor, hook: object) -> Tensor:
        x = x.clone()
        x[:, :, head] = x[:, :, head] + added
        return x

    with torch.no_grad():
        return metric(made.model.run_with_hooks(made.corrupted, fwd_hooks=[(name, hook)]))


@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("name", TWO_LAYERS)
def test_a_direct_path_is_patched_as_by_hand(name: str, component: str) -> None:
    """By hand: what a query, key or value changes by if the head's input gets the other write."""
    made = make(name)
    model, attn = made.model, made.model.blocks[1].attn
    clean, corrupted = cache_of(made, made.clean), cache_of(made, made.corrupted)
    source, target, z = 1, 0, "blocks.0.attn.hook_z"
    found = patching.get_act_patch_direct_path(
        *(model, made.corrupted, clean, corrupted, metric),
        **{"src_layer": 0, "src_head": source, "component": component, "verbose": False},
    )
    assert not model.cfg.use_split_qkv_input  # set back
    with torch.no_grad():
        write = (clean[z] - corrupted[z])[:, :, source] @ model.W_O[0, source]
        resid = corrupted["resid_pre", 1]
        norm = model.blocks[1].ln1
        added = (norm(resid + write) - norm(resid)) @ getattr(attn, f"W_{component.upper()}")[
            target
        ]
    expected = with_added(made, f"blocks.1.attn.hook_{component}", target, added)
    assert_close(found[1, target], expected.float())
    assert not found[0].any()
    every = patching.get_act_patch_direct_path_all_sources(
        *(model, made.corrupted, clean, corrupted, metric), component=component, verbose=False
    )
    assert_close(every[0, source], found)


def test_flags_are_set_back_after_a_failure() -> None:
    made = make(TWO_LAYERS[0])
    cache = cache_of(made, made.clean)
    made.model.set_use_attn_in(True)

    def fails(logits: Tensor) -> Tensor:
        raise RuntimeError("metric")

    with pytest.raises(RuntimeError, match="metric"):
        patching.get_act_patch_direct_path(
            made.model, made.corrupted, cache, cache, fails, src_layer=0, src_head=0, verbose=False
        )
    assert made.model.cfg.use_attn_in
    assert not made.model.cfg.use_split_qkv_input


def test_slices_with_and_without_mlps_are_both_here() -> None:
    assert [*WITHOUT_MLP, *HAVE_MLP] == [*SLICES]
    assert len(SWEEPS) + len(EVERY) == 18
