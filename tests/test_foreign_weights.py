"""State dicts of others: files, names of all versions of TransformerLens, and what does not fit."""

import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_lens import SLICES
from safetensors.torch import save_file
from torch import Tensor

from toycircuits.core.config import InputError, find_run, read_params
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.transformer import Transformer
from toycircuits.foreign.fit import fit_run
from toycircuits.foreign.weights import (
    check_tensors,
    misfit,
    read_state_dict,
    standard_names,
    with_layer_norm,
)
from toycircuits.released import load_run

State = dict[str, Tensor]


def made(name: str) -> Transformer:
    """A model of a slice whose parameters are all different, also the biases."""
    slice_name, data, model = SLICES[name]
    task, architecture = load_task(slice_name), load_model(slice_name)
    generator = torch.Generator().manual_seed(0)
    settings = architecture.ModelSettings.parse(model, "model")
    built = architecture.build(settings, task.DataSettings.parse(data, "data"), generator)
    assert isinstance(built, Transformer)
    frozen = built.frozen()
    with torch.no_grad():
        for parameter_name, parameter in built.named_parameters():
            if parameter_name not in frozen:
                parameter.normal_(generator=generator)
    return built


def hooked(model: Transformer) -> State:
    """As TransformerLens 1 to 3 saves a `HookedTransformer`: with a causal mask in each layer."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    n = model.settings.n_ctx
    for layer in range(model.settings.n_layers):
        state[f"blocks.{layer}.attn.mask"] = torch.ones(n, n).tril().bool()
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    return state


def bridge(model: Transformer) -> Any:
    """TransformerLens's own native model, of version 3 and 4, with the weights of `model`."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    shape = model.settings
    sizes = {name: getattr(shape, name) for name in ("d_model", "n_layers", "n_heads", "d_head")}
    sizes |= {name: getattr(shape, name) for name in ("n_ctx", "d_vocab", "d_vocab_out", "d_mlp")}
    cfg = TransformerBridgeConfig(
        **sizes,
        act_fn=shape.act_fn or "relu",
        attn_only=shape.d_mlp is None,
        normalization_type=shape.normalization,
        architecture="TransformerLensNative",
    )
    native = TransformerBridge.boot_native(cfg)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    native.load_state_dict(convert_tl_checkpoint(state, cfg))
    return native


@pytest.mark.parametrize("name", SLICES)
def test_names_of_hooked_transformer_are_ours(name: str) -> None:
    model = made(name)
    expected = dict(model.named_parameters())
    named = standard_names(hooked(model), expected)
    assert all(torch.equal(named[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", SLICES)
def test_names_of_transformer_bridge_become_ours(name: str) -> None:
    model = made(name)
    expected = dict(model.named_parameters())
    native = bridge(model)
    theirs = dict(native.tl_named_parameters())
    for state in (native.state_dict(), native.original_model.state_dict()):
        assert not expected.keys() & state.keys()
        named = standard_names(state, expected)
        assert set(named) == set(expected)
        for key, value in expected.items():
            assert torch.equal(named[key], value), key
            assert torch.equal(named[key], theirs[key]), key


def without_prefix(state: State) -> State:
    return state


def compiled(state: State) -> State:
    return {f"_orig_mod.{name}": value for name, value in state.items()}


def in_lightning(state: State) -> State:
    return {f"model.module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("wrap", [without_prefix, compiled, in_lightning])
def test_words_of_wrappers_are_dropped(wrap: Callable[[State], State]) -> None:
    model = made("reverse_increment")
    expected = dict(model.named_parameters())
    named = standard_names(wrap(dict(model.state_dict())), expected)
    assert not misfit(named, expected, model.frozen())
    assert set(named) == set(expected)


def test_two_tensors_of_one_name_with_other_values_are_refused() -> None:
    model = made("modular_arithmetic")
    expected = dict(model.named_parameters())
    state = dict(model.state_dict()) | {"embed.weight": torch.zeros_like(expected["embed.W_E"])}
    with pytest.raises(InputError, match=r"embed\.W_E: found two tensors"):
        standard_names(state, expected)


def test_folded_layer_norm_is_weight_one_and_bias_zero() -> None:
    model = made("reverse_increment")
    expected = dict(model.named_parameters())
    norms = [name for name in expected if re.search(r"ln\w*\.[wb]$", name)]
    assert len(norms) == 10
    state = {name: value for name, value in expected.items() if name not in norms}
    named, is_folded = with_layer_norm(state, expected)
    assert is_folded
    assert all((named[name] == float(name.endswith("w"))).all() for name in norms)
    some = state | {norms[0]: expected[norms[0]]}
    assert with_layer_norm(some, expected) == (some, False)  # some are there, so others are missing
    assert misfit(some, expected, {}).endswith("missing")


# What does not fit a run.


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return read_params() | {"scale": "quick"}


def state_of(run: str) -> State:
    return {name: value.clone() for name, value in load_run(run).model.state_dict().items()}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {name: change(state[name])}


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_mask(*rows: str) -> Callable[[State], State]:
    mask = torch.tensor([[cell == "1" for cell in row] for row in rows])
    return lambda state: state | {"blocks.0.attn.mask": mask}


WRONG: list[tuple[Callable[[State], State], str]] = [
    (without("embed.W_E"), "'embed.W_E': missing"),
    (
        lambda s: s | {"blocks.0.mlp.W_in": torch.zeros(1)},
        "'blocks.0.mlp.W_in': found, but such a model has no parameter of this name",
    ),
    (
        changed("embed.W_E", lambda x: x[:-1]),
        "embed.W_E: shape: found (31, 64); expected (32, 64)",
    ),
    (
        changed("blocks.1.attn.W_V", lambda x: x + 1e-6),
        "blocks.1.attn.W_V: found other values than the identity, to which the settings freeze it",
    ),
    (
        changed("unembed.b_U", lambda x: x + 1),
        "unembed.b_U: found other values than zero, to which the settings freeze it",
    ),
    (
        changed("embed.W_E", lambda x: x / 0),
        "embed.W_E: found a number that is NaN or infinite",
    ),
    (changed("embed.W_E", lambda x: x.int()), "embed.W_E: found torch.int32"),
    (
        with_mask("1....", "11...", "111..", "1111.", "11111"[:4] + "."),
        "blocks.0.attn.mask: found 1..../11.../111../1111./1111.; "
        "expected 1..../1..../11.../...../....., or a causal mask",
    ),
    (with_mask("1"), "blocks.0.attn.mask: shape: found (1, 1); expected (5, 5)"),
    (
        lambda s: s | {"blocks.9.attn.mask": torch.ones(5, 5)},
        "blocks.9.attn.mask: found, but such a model has 2 layers",
    ),
    (
        changed("embed.W_E", lambda x: x.double() * 1e300),
        "embed.W_E: found a number that is NaN or infinite, or too large for float32",
    ),
    (changed("embed.W_E", lambda x: x.to_sparse()), "embed.W_E: found a sparse tensor"),
    (changed("embed.W_E", lambda x: x.to("meta")), "embed.W_E: found a tensor without numbers"),
    (lambda s: s | {"a\nb": torch.zeros(1).int()}, r"'a\nb': found, but such a model has no"),
    (
        lambda s: s | {f"x{i}": torch.zeros(1) for i in range(5000)},
        "found 5020 tensors; such a model has 20 parameters",
    ),
]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({3: torch.zeros(1)}, "found the name 3; allowed: text"),
        ({"a\nb": [1.0]}, "a b: found list; allowed: a tensor of PyTorch"),
    ],
)
def test_only_tensors_by_name_are_a_state_dict(state: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_tensors(state)


def test_a_mask_among_weights_of_linear_regression_is_refused(params: dict[str, Any]) -> None:
    state = state_of("linear_regression_h2") | {"blocks.0.attn.mask": torch.ones(5, 5)}
    with pytest.raises(InputError, match=r"'blocks\.0\.attn\.mask': found, but such a model"):
        fit_run(state, find_run(params, "linear_regression_h2"), None, params)


def test_a_name_with_a_wrapped_twin_of_other_values_is_refused(params: dict[str, Any]) -> None:
    state = state_of("order_by_scale_2l")
    state["embed._original_component.W_E"] = state["embed.W_E"] + 1
    with pytest.raises(InputError, match=r"embed\.W_E: found two tensors"):
        fit_run(state, find_run(params, "order_by_scale_2l"), None, params)
    state["embed._original_component.W_E"] = state["embed.W_E"].double()  # the same values
    assert fit_run(state, find_run(params, "order_by_scale_2l"), None, params)


def test_weights_without_layer_norm_are_of_the_variant_without_it(params: dict[str, Any]) -> None:
    """They would fit the other variant, too, if LayerNorm were folded in; a note says so."""
    run = find_run(params, "list_copy_100_2l_frozen")
    data = run.section("data", load_task("list_copy").DataSettings)
    architecture = load_model("list_copy")
    states = {}
    for variant in ("no_LN", "LN"):
        settings = run.section("model", architecture.ModelSettings, variant)
        model = architecture.build(settings, data, torch.Generator().manual_seed(1))
        states[variant] = model.state_dict()
    without = fit_run(states["no_LN"], run, None, params)
    assert without.variant == "no_LN"
    assert "LayerNorm: LN" in without.notes[-1]
    assert fit_run(states["LN"], run, None, params).variant == "LN"
    assert fit_run(states["LN"], run, None, params).notes == ()
    assert fit_run(states["no_LN"], run, "LN", params).is_folded
    with pytest.raises(InputError, match=r"scale quick --variant LN"):
        fit_run(states["LN"], run, "no_LN", params)


def test_faults_in_settings_of_another_run_do_not_matter(params: dict[str, Any]) -> None:
    faulty = {**params, "runs": {**params["runs"]}}
    faulty["runs"]["order_by_scale_2l_ln"] = {**params["runs"]["order_by_scale_2l_ln"], "model": 3}
    with pytest.raises(InputError, match=r"'a': found.*they fit no run|missing.*they fit no run"):
        fit_run({"a": torch.zeros(1)}, find_run(faulty, "order_by_scale_2l"), None, faulty)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_fit_is_named(
    change: Callable[[State], State], message: str, params: dict[str, Any]
) -> None:
    run = find_run(params, "order_by_scale_2l")
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        fit_run(change(state_of("order_by_scale_2l")), run, None, params)
    assert "\n" not in str(raised.value)


def test_a_causal_mask_says_nothing_and_the_mask_of_the_run_is_no_news(
    params: dict[str, Any],
) -> None:
    run = find_run(params, "order_by_scale_2l")
    state = state_of("order_by_scale_2l")
    causal = with_mask("1....", "11...", "111..", "1111.", "11111")(state)
    assert any("causal" in note for note in fit_run(causal, run, None, params).notes)
    own = with_mask("1....", "1....", "11...", ".....", ".....")(state)
    assert not fit_run(own, run, None, params).notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(dtype: torch.dtype, params: dict[str, Any]) -> None:
    run = find_run(params, "order_by_scale_2l")
    state = {name: value.to(dtype) for name, value in state_of("order_by_scale_2l").items()}
    model = fit_run(state, run, None, params).model
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def test_frozen_variants_are_told_from_free_ones(params: dict[str, Any]) -> None:
    """The identity fits a model that trains the matrix, too; the most frozen variant is taken."""
    run = find_run(params, "list_copy_100_2l")
    architecture = load_model("list_copy")
    for variant in run.variants:
        settings = run.section("model", architecture.ModelSettings, variant)
        data = run.section("data", load_task("list_copy").DataSettings)
        model = architecture.build(settings, data, torch.Generator().manual_seed(1))
        assert fit_run(model.state_dict(), run, None, params).variant == variant
    frozen = model.state_dict()
    assert fit_run(frozen, run, "free_V_free_O", params).variant == "free_V_free_O"
    with pytest.raises(InputError, match="variant: found 'x'; allowed: free_V_free_O"):
        fit_run(frozen, run, "x", params)


def test_variants_that_weights_do_not_tell_apart_must_be_named(params: dict[str, Any]) -> None:
    run = find_run(params, "linear_regression_inits")
    data = run.section("data", load_task("linear_regression").DataSettings)
    architecture = load_model("linear_regression")
    settings = run.section("model", architecture.ModelSettings, run.variants[0])
    state = architecture.build(settings, data, torch.Generator().manual_seed(1)).state_dict()
    with pytest.raises(InputError, match="fit several variants of linear_regression_inits"):
        fit_run(state, run, None, params)
    assert fit_run(state, run, run.variants[1], params).variant == run.variants[1]


def test_the_message_says_which_run_the_weights_fit(params: dict[str, Any]) -> None:
    run = find_run(params, "order_by_scale_3l")
    with pytest.raises(InputError, match="they fit --run order_by_scale_2l --scale quick"):
        fit_run(state_of("order_by_scale_2l"), run, None, params)
    with pytest.raises(InputError, match="they fit no run"):
        fit_run({"a": torch.zeros(1)}, run, None, params)


# Files.


def test_files_of_all_kinds_are_read(tmp_path: Path) -> None:
    state = state_of("order_by_scale_2l")
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    nested = {"epoch": 3, "model": state, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(nested, tmp_path / "checkpoint.ckpt")
    save_file(state, tmp_path / "model.safetensors")
    for path in tmp_path.iterdir():
        read = read_state_dict(path)
        assert read.keys() == state.keys(), path
        assert all(torch.equal(read[name], state[name]) for name in state), path


def test_a_file_of_several_models_needs_a_name(tmp_path: Path) -> None:
    a, b = torch.zeros(1), torch.ones(1)
    path = tmp_path / "models.safetensors"
    save_file({"seed0/x": a, "seed1/x": b}, path)
    assert torch.equal(read_state_dict(path, "seed1")["x"], b)
    for name in (None, "seed2"):
        with pytest.raises(InputError, match="name one of its models: seed0, seed1"):
            read_state_dict(path, name)
    save_file({"x": a}, tmp_path / "one.safetensors")
    with pytest.raises(InputError, match="found no models by name"):
        read_state_dict(tmp_path / "one.safetensors", "seed0")


class Dangerous:
    """An object whose unpickling runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Dangerous(f"touch {planted}"), protocol=2))
    torch.save(Dangerous(f"touch {planted}"), tmp_path / "zip.pt")
    for file in (path, tmp_path / "zip.pt"):
        with pytest.raises(InputError, match=r"save its state dict"):
            read_state_dict(file)
    assert not planted.exists()
    pickle.loads(path.read_bytes())
    assert planted.exists()  # the file is as dangerous as the test needs


def test_a_whole_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_state_dict(tmp_path / "model.pt")


def test_the_remedy_for_torchscript_runs_no_code(tmp_path: Path) -> None:
    """PyTorch's own message says to load with `weights_only=False`."""
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    with pytest.raises(InputError, match="found a TorchScript archive; save the state dict"):
        read_state_dict(path)


BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"epoch,loss\n",
    "cut zip": b"PK\x03\x04" + bytes(30),
    "cut pickle": b"\x80\x02}",
    "deep pickle": b"\x80\x04" + b"(" * 1000,
    "header too long": (2**62).to_bytes(8, "little") + b"{}",
    "no tensors": (2).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_other_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    if content.endswith(b"{}") and len(content) == 10 and content[0] == 2:
        assert read_state_dict(path) == {}  # an empty state dict, which fits nothing
        return
    with pytest.raises(InputError) as raised:
        read_state_dict(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not str(raised.value).endswith(": ")


def test_what_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_state_dict(path)


@pytest.mark.parametrize("content", [[1], {}, 3, {"a/b": {"x": torch.zeros(1)}}])
def test_files_without_a_state_dict_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match="allowed: a state dict"):
        read_state_dict(tmp_path / "model.pt")


def test_of_several_state_dicts_in_a_checkpoint_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    content = {"ema": {"x": torch.ones(1)}, "model": {"x": torch.zeros(1)}, "step": 3}
    torch.save(content, path)
    assert read_state_dict(path, "ema")["x"].item() == 1
    with pytest.raises(InputError, match="name one of its models: ema, model"):
        read_state_dict(path)
