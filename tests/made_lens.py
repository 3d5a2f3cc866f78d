"""Small models of all slices with tokens, as `load_run` gives them, with random weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toycircuits.core.lens import LensTransformer, targets_are_next_tokens
from toycircuits.core.slices import load_model, load_task

BOTH_FREE = {"freeze_W_V": False, "freeze_W_O": False}
LIST = {"n_symbols": 7, "seed": 0}
ATTENTION = {"n_heads": 2, "d_model": 6}
WITH_MLP = {**ATTENTION, "d_head": 3, "d_mlp": 10}
# Name: slice, settings of the task, settings of the model.
SLICES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "list_copy, next_token": (
        "list_copy",
        {**LIST, "layout": "next_token", "n_lists": 20, "n_sampled": 3},
        {**ATTENTION, **BOTH_FREE, "n_layers": 2, "d_head": 3, "normalization": "LN"}
        | {"use_bias": True},
    ),
    "list_copy, in_place": (
        "list_copy",
        {**LIST, "layout": "in_place", "train_fraction": 0.8},
        {**ATTENTION, "n_layers": 2, "d_head": 6, "normalization": None, "use_bias": False}
        | {"freeze_W_V": True, "freeze_W_O": True},
    ),
    "list_copy, masked": (
        "list_copy",
        {**LIST, "layout": "masked", "train_fraction": 0.8},
        {**ATTENTION, **BOTH_FREE, "n_layers": 2, "d_head": 3, "normalization": "LN"}
        | {"use_bias": False},
    ),
    "modular_arithmetic": (
        "modular_arithmetic",
        {"modulus": 7, "operation": "subtract", "train_fraction": 0.5, "seed": 0},
        {**WITH_MLP, "n_layers": 1, "act_fn": "relu", "normalization": None, "use_bias": False},
    ),
    "reverse_increment": (
        "reverse_increment",
        {"n_symbols": 4, "length": 3, "n_train": 50, "n_sampled": 10, "seed": 0},
        {**WITH_MLP, "n_layers": 2, "act_fn": "gelu", "normalization": "LN", "use_bias": True},
    ),
}
WITHOUT_MLP = [name for name in SLICES if name.startswith("list_copy")]
HAVE_MLP = [name for name in SLICES if name not in WITHOUT_MLP]
TWO_LAYERS = [name for name, (_, _, model) in SLICES.items() if model["n_layers"] == 2]


@dataclass(frozen=True)
class Made:
    """A model in float64, all sequences of its task, and two batches of three of them."""

    model: Any  # a LensTransformer; tests reach into its parts
    tokens: Tensor
    clean: Tensor
    corrupted: Tensor

    @property
    def last(self) -> int:
        """The last position."""
        return self.clean.shape[1] - 1

    @property
    def middle(self) -> int:
        """A position that sees what differs between sequences, and that the last one depends on."""
        return 2  # SEP of a list, "=" of an equation, a symbol of a string


def make(name: str) -> Made:
    """The model of `SLICES[name]`; every weight that is trained, biases included, is random."""
    slice_name, data, model = SLICES[name]
    task, architecture = load_task(slice_name), load_model(slice_name)
    settings = task.DataSettings.parse(data, "data")
    tensors = task.generate(settings, torch.Generator().manual_seed(0))
    shape = architecture.ModelSettings.parse(model, "model")
    plain: Any = architecture.build(shape, settings, torch.Generator().manual_seed(1))
    plain = plain.double()
    generator = torch.Generator().manual_seed(2)
    for parameter in plain.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.6, generator=generator)
    tokens = next(tensors[key] for key in ("all_inputs", "inputs", "tokens") if key in tensors)
    rows = torch.randperm(len(tokens), generator=generator)
    lens = LensTransformer.of(plain, targets_are_next_tokens(tensors))
    return Made(lens, tokens, tokens[rows[:3]], tokens[rows[3:6]])
