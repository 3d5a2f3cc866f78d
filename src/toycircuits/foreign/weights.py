"""State dicts from anywhere: read them without unpickling, and give them this project's names.

The names of this project are those of TransformerLens's `HookedTransformer` (versions 1 to 3). The
`TransformerBridge` of versions 3 and 4 has other names, and stores each matrix as PyTorch's layers
do, [out, in]. A file may also have words that wrappers put before each name, such as `module.`.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toycircuits.core.checkpoints import MODEL_NAME
from toycircuits.core.config import InputError
from toycircuits.core.messages import in_one_line, quoted

SAVED_BY_TORCH = (b"PK\x03\x04", b"\x80")  # how a file of `torch.save` begins, new and old
WRAPPED = "_original_component."  # TransformerBridge puts it into the names of what it wraps
# How the native model of TransformerBridge names its parts, and how TransformerBridge itself does.
NATIVE = {
    **{r"^tok_embed\.": "embed.", r"^pos\.": "pos_embed.", r"^layers\.": "blocks."},
    **{r"^ln_out\.": "ln_final.", r"^head\.": "unembed."},
    **{r"\.mlp\.fc_in\.": ".mlp.in.", r"\.mlp\.fc_out\.": ".mlp.out."},
}
BUFFERS = re.compile(r"blocks\.[0-9]{1,9}\.attn\.(mask|IGNORE)")  # of `HookedTransformer`
# A state dict has a name for each parameter. It may also have a second name for each, and the
# buffers. One with far more names is of a larger model, and not worth looking at name by name.
MOST_NAMES = 4


def read_state_dict(path: Path, model: str | None = None) -> dict[str, Tensor]:
    """The state dict in a safetensors file or in a file of `torch.save`, on the CPU.

    A file of `torch.save` may hold the state dict alone, or a dictionary with state dicts in it.
    It is read with `weights_only=True`, so that no code in it runs. A safetensors file may hold
    several models, whose tensors are called MODEL/PARAMETER, as in reports/weights.

    Args:
        model: which model of the file; None if the file holds only one.

    Raises:
        InputError: the file is absent, cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if start.startswith(SAVED_BY_TORCH):
        return _chosen(_read_saved_by_torch(path), model, path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, ValueError, SafetensorError) as error:
        text = "neither a safetensors file nor one that `torch.save` wrote"
        raise InputError(f"{path}: {text}: {in_one_line(str(error))}") from None
    return _chosen(tensors, model, path)


def _read_saved_by_torch(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`; of several, with their names before each."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = re.search(r"GLOBAL ([\w.]+)", str(error))
        objects = f"{reason[1]} and perhaps others" if reason else "objects that are not tensors"
        remedy = "save its state dict: `torch.save(model.state_dict(), FILE)`"
        raise InputError(f"{path}: found {objects}, which only code can load; {remedy}") from None
    except Exception as error:  # PyTorch has no class for damaged files
        if "TorchScript" in str(error):  # PyTorch's own advice is to run the code in the file
            remedy = "save the state dict of the model instead"
            raise InputError(f"{path}: found a TorchScript archive; {remedy}") from None
        text = in_one_line(str(error)) or type(error).__name__
        raise InputError(f"{path}: cannot be read: {text}") from None
    if _is_state_dict(content):
        return dict(content)
    parts = content if isinstance(content, dict) else {}
    found = {str(name): part for name, part in parts.items() if _is_state_dict(part)}
    if not found or not all(re.fullmatch(MODEL_NAME, name) for name in found):
        inside = _plain(", ".join(found)) if found else type(content).__name__
        raise InputError(f"{path}: found {inside}; allowed: a state dict, name -> tensor")
    return {f"{name}/{key}": value for name, part in found.items() for key, value in part.items()}


def _is_state_dict(content: Any) -> bool:
    """Whether `content` has tensors by name, and nothing else."""
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _chosen(tensors: Mapping[str, Tensor], model: str | None, path: Path) -> dict[str, Tensor]:
    """The tensors of `model`, if the names of all tensors begin with the name of a model."""
    pattern = re.compile(rf"({MODEL_NAME})/(.+)")
    parts = {name: pattern.fullmatch(name) for name in tensors}
    if not tensors or not all(parts.values()):
        if model is not None:
            raise InputError(f"{path}: found no models by name in it; leave out the model's name")
        return dict(tensors)
    models: dict[str, dict[str, Tensor]] = {}
    for name, part in parts.items():
        assert part is not None
        models.setdefault(part[1], {})[part[2]] = tensors[name]
    if model is None and len(models) == 1:
        return models.popitem()[1]
    if model not in models:
        found = "no name of a model" if model is None else quoted(model)
        raise InputError(f"{path}: found {found}; name one of its models: {', '.join(models)}")
    return models[model]


def check_tensors(state: Mapping[Any, Any]) -> None:
    """Raise an `InputError` unless `state` has tensors by name whose numbers can be read.

    Sparse, quantised and nested tensors are refused, and those without numbers, of the device meta.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise InputError(f"found the name {quoted(name)}; allowed: text")
        if not isinstance(value, Tensor):
            found = type(value).__name__
            raise InputError(f"{_plain(name)}: found {found}; allowed: a tensor of PyTorch")
        kinds = {
            "tensor without numbers, on the device meta": value.is_meta,
            "quantised tensor": value.is_quantized,
            "nested tensor": value.is_nested,
            "sparse tensor": not value.is_nested and value.layout != torch.strided,
        }
        if found := next((kind for kind, holds in kinds.items() if holds), ""):
            raise InputError(f"{_plain(name)}: found a {found}; allowed: a dense tensor")


def standard_names(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`state` with the names and shapes of `HookedTransformer`, without wrappers' words.

    Args:
        expected: a state dict of the model that `state` should fit, for the number of heads.

    Raises:
        InputError: two names mean the same parameter, and their values differ.
    """
    if len(state) > MOST_NAMES * len(expected):
        text = f"found {len(state)} tensors; such a model has {len(expected)} parameters"
        raise InputError(text)
    known = {name.partition(".")[0] for name in expected}
    named: dict[str, Tensor] = {}
    for name, value in zip(_without_wrappers(state, known), state.values(), strict=True):
        key, tensor = _as_hooked(name, value, expected)
        if key in named and not _equal(named[key], tensor):
            raise InputError(f"{_plain(key)}: found two tensors of this name, with other values")
        named[key] = tensor
    return named


def _without_wrappers(names: Iterable[str], known: set[str]) -> list[str]:
    """`names` without the words before all of them, such as `module.` and `_orig_mod.`."""
    shorter = [name.replace(WRAPPED, "") for name in names]
    while all("." in name for name in shorter):
        first = {name.partition(".")[0] for name in shorter}
        if len(first) != 1 or first & known:
            break
        shorter = [name.partition(".")[2] for name in shorter]
    return shorter


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether both have the same shape and the same values in float32."""
    one, other = (tensor.detach().to("cpu", torch.float32) for tensor in (a, b))
    return torch.equal(one, other)


def _as_hooked(name: str, value: Tensor, expected: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """The name and the tensor that `HookedTransformer` has for a parameter of any version."""
    for pattern, replacement in NATIVE.items():
        name = name if name in expected else re.sub(pattern, replacement, name)
    path, _, leaf = name.rpartition(".")
    part = path.rpartition(".")[2]
    if leaf not in ("weight", "bias") or name in expected:
        return name, value
    transposed = value.mT if value.ndim > 1 else value
    if part in ("embed", "pos_embed"):
        return f"{path}.{'W_E' if part == 'embed' else 'W_pos'}", value
    if part in ("ln1", "ln2", "ln_final"):
        return f"{path}.{leaf[0]}", value
    if part == "unembed":
        return f"{path}.{'W_U' if leaf == 'weight' else 'b_U'}", transposed
    module, letter = path.rpartition(".")[0], "W" if leaf == "weight" else "b"
    if part in ("in", "out"):
        return f"{module}.{letter}_{part}", transposed
    if part in ("q", "k", "v", "o"):
        hooked = f"{module}.{letter}_{part.upper()}"
        return hooked, _by_head(value, hooked, expected)
    return name, value


def _by_head(value: Tensor, name: str, expected: Mapping[str, Tensor]) -> Tensor:
    """A matrix or bias of all heads as one of each head, if its size is the expected one.

    [head d_head, d_model] becomes [head, d_model, d_head]; the output's [d_model, head d_head]
    becomes [head, d_head, d_model].
    """
    shape = expected[name].shape if name in expected else torch.Size()
    if value.numel() != shape.numel() or value.ndim > 2:
        return value
    if value.ndim == 1:
        return value.view(shape)
    if name.endswith("W_O"):
        return value.mT.reshape(shape)
    return value.view(shape[0], shape[2], shape[1]).transpose(1, 2)


def without_buffers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters in `state`, and the masks in it, which `HookedTransformer` saves, by name."""
    rest = {name: value for name, value in state.items() if not BUFFERS.fullmatch(name)}
    masks = {name: state[name] for name in state if name not in rest and name.endswith("mask")}
    return rest, masks


def as_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in float32, the type of all models here, on the CPU.

    Raises:
        InputError: a tensor holds no real numbers, or one of them is not finite in float32.
    """
    for name, value in state.items():
        if not value.is_floating_point():
            raise InputError(f"{name}: found {value.dtype}; allowed: floating-point numbers")
    converted = {
        name: value.detach().to("cpu", torch.float32).contiguous() for name, value in state.items()
    }
    for name, value in converted.items():
        if not value.isfinite().all():
            text = "found a number that is NaN or infinite"
            larger = ", or too large for float32" if state[name].dtype == torch.float64 else ""
            raise InputError(f"{name}: {text}{larger}")
    return converted


def with_layer_norm(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], bool]:
    """`state` with weight 1 and bias 0 for each LayerNorm, if it has none but should.

    TransformerLens's `fold_layer_norm` leaves such a state: the weights of LayerNorm are then part
    of the matrices that read its output. Returns also whether they were added.
    """
    norms = [name for name in expected if re.search(r"(^|\.)ln(1|2|_final)\.[wb]$", name)]
    if not norms or any(name in state for name in norms):
        return dict(state), False
    added = {name: torch.full(expected[name].shape, float(name.endswith("w"))) for name in norms}
    return {**state, **added}, True


def misfit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], frozen: Container[str]
) -> str:
    """The first name or shape in which `state` differs from the model, or the empty text.

    Args:
        expected: all parameters of the model by name, or tensors of their shapes.
        frozen: the names of those that the model freezes; `state` may lack them.
    """
    if missing := [name for name in expected if name not in state and name not in frozen]:
        return f"{_listed(missing)}: missing"
    if unknown := [name for name in state if name not in expected]:
        return f"{_listed(unknown)}: found, but such a model has no parameter of this name"
    for name, value in state.items():
        if value.shape != expected[name].shape:
            shapes = f"found {tuple(value.shape)}; expected {tuple(expected[name].shape)}"
            return f"{name}: shape: {shapes}"
    return ""


def not_frozen(state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> str:
    """The first parameter with other values than those of `frozen`, or the empty text."""
    for name, value in frozen.items():
        if name in state and not torch.equal(state[name], value):
            kind = "the identity" if value.ndim == 3 else "zero"
            return f"{name}: found other values than {kind}, to which the settings freeze it"
    return ""


def _plain(name: str) -> str:
    """A name from a file, for a message."""
    return in_one_line(name)[:80]


def _listed(names: Sequence[str]) -> str:
    """The first name, and how many there are beside it."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{quoted(names[0])}{more}"
