"""Hooks see every activation, and what they do to it changes nothing else."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from made_models import ATTENTION_ONLY, COPY_100, MakeModel, some_tokens
from torch import Tensor
from torch.nn.modules import module as torch_module

from toycircuits.core.layers import HookPoint
from toycircuits.core.transformer import Transformer

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"n_layers": 2},
    "LN and biases": {"n_layers": 2, "normalization": "LN", "use_bias": True},
    "attention only": {"n_layers": 2, **ATTENTION_ONLY, "n_heads": 1, "d_head": 4},
    "frozen": {
        **{"n_layers": 2, "n_heads": 1, "d_head": 4, "freeze_W_V": True, "freeze_W_O": True},
        **ATTENTION_ONLY,
    },
    "gelu": {"act_fn": "gelu"},
    "blind": {
        **{"masks": [("1..", "...", "..."), ("1..", "11.", "11.")], "blind_queries": True},
        **{"n_layers": 2, "normalization": "LN"},
    },
    "list copy": {
        **{"masks": [COPY_100], "fixed_tokens": [None, None, 3, 3, 3], **ATTENTION_ONLY},
        **{"n_heads": 1, "d_head": 4, "n_layers": 2},
    },
}
# The pattern of a query with one key, or with all scores equal, does not depend on these.
MAY_NOT_MATTER = ("hook_q", "hook_k", "hook_q_input", "hook_k_input", "hook_attn_scores")
OPTIONAL = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Transformer:
    """A model with all its hook points, also those that are made on demand."""
    made = make_model(**MODELS[request.param])
    for block in made.layers:
        block.attn.hook_result = HookPoint()
        for name in OPTIONAL:
            if hasattr(block, name):
                setattr(block, name, HookPoint())
    made.setup()
    return made


def double_plus_one(x: Tensor) -> Tensor:
    """An edit that changes zeros too, in place."""
    return x.mul_(2).add_(1)


def edit(x: Tensor) -> None:
    """The same as a hook's edit that returns nothing."""
    double_plus_one(x)


def weights_of(model: Transformer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def outcome(
    model: Transformer, tokens: Tensor, name: str, hook: Callable[[Tensor, Any], Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """Logits under a hook, and where gradients are on, those of all weights."""
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])
    if not torch.is_grad_enabled():
        return logits, []
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = logits.nan_to_num().sin().sum()
    return logits, list(torch.autograd.grad(total, parameters, materialize_grads=True))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_an_edit_in_place_is_the_edit_of_a_clone(
    model: Transformer, batch: int, gradients: bool
) -> None:
    tokens = some_tokens(model.settings, batch)
    before, given = weights_of(model), tokens.clone()
    assert len(model.hook_dict) > 15
    with torch.set_grad_enabled(gradients):
        plain = model(tokens)
        for name in model.hook_dict:
            in_place = outcome(model, tokens, name, lambda x, hook: edit(x))
            on_clone = outcome(model, tokens, name, lambda x, hook: double_plus_one(x.clone()))
            assert torch.equal(in_place[0], on_clone[0]), name
            for one, other in zip(in_place[1], on_clone[1], strict=True):
                assert torch.equal(one, other), name
            if not name.endswith(MAY_NOT_MATTER):
                assert not torch.equal(in_place[0], plain), name
    assert torch.equal(tokens, given)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_cached_activations_share_no_memory(
    model: Transformer, batch: int, gradients: bool
) -> None:
    tokens = some_tokens(model.settings, batch)
    before, given = weights_of(model), tokens.clone()
    with torch.set_grad_enabled(gradients):
        logits, cache = model.run_with_cache(tokens)
        expected, copies = logits.clone(), {name: value.clone() for name, value in cache.items()}
        for name, value in cache.items():
            value.fill_(7.0)
            for other, untouched in cache.items():
                if other != name:
                    assert torch.equal(untouched, copies[other]), (name, other)
            value.copy_(copies[name])
            value.fill_(7.0)
            copies[name].fill_(7.0)
    assert torch.equal(logits, expected)
    assert torch.equal(tokens, given)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_an_edit_in_place_beside_hooks_on_gradients(model: Transformer) -> None:
    """PyTorch forbids to change a tensor in place that a backward hook watches."""
    tokens = some_tokens(model.settings, 2)
    for name in model.hook_dict:
        seen: list[Tensor] = []
        with model.hooks(
            bwd_hooks=[(name, lambda gradient, hook, seen=seen: seen.append(gradient))]
        ):
            logits = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: edit(x))])
            logits.sin().sum().backward()
        assert seen, name


@contextmanager
def counted(module: torch.nn.Module, kind: str) -> Iterator[list[str]]:
    """The calls of a hook of torch's own on `module`."""
    calls: list[str] = []

    def hook(*_: Any) -> None:
        calls.append(kind)

    handle = getattr(module, f"register_{kind}_hook")(hook)
    try:
        yield calls
    finally:
        handle.remove()


KINDS = ("forward", "forward_pre", "full_backward", "full_backward_pre")


# PyTorch says so where no input has a gradient, as with tokens.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_pytorch_fire_on_every_module(model: Transformer, kind: str) -> None:
    """Also where only some positions are read, for which there is a form without hooks."""
    tokens = some_tokens(model.settings, 2)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList):
            continue  # it is never called, and PyTorch says so itself
        with counted(module, kind) as calls:
            model(tokens, read=[0, 1, 2], fixed=True).sum().backward()
        split = ("blocks.0.ln1", "blocks.1.ln1")
        assert len(calls) == (3 if name.startswith(split) else 1), name


def test_global_hooks_of_pytorch_fire(make_model: MakeModel) -> None:
    model = make_model()
    names: list[str] = []
    handle = torch_module.register_module_forward_hook(
        lambda module, args, out: names.append(type(module).__name__)
    )
    try:
        model(some_tokens(model.settings, 2), read=[2])
    finally:
        handle.remove()
    assert {"Embed", "Attention", "MLP", "Unembed"} <= set(names)


def test_a_hook_that_replaces_the_output_of_a_module(make_model: MakeModel) -> None:
    model = make_model(n_layers=2)
    tokens = some_tokens(model.settings, 2)
    with ExitStack() as stack:
        handle = model.layers[0].attn.register_forward_hook(lambda module, args, out: out * 0)
        stack.callback(handle.remove)
        found = model(tokens, read=[2])
    expected = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: x * 0)]
    )
    assert torch.equal(found, expected[:, [2]])


def test_edits_in_place_by_hooks_of_pytorch_change_nothing_else(make_model: MakeModel) -> None:
    """A module's inputs and outputs are copies, so that no cached activation changes."""
    model = make_model(n_layers=2, **ATTENTION_ONLY)
    tokens = some_tokens(model.settings, 2)
    _, expected = model.run_with_cache(tokens)
    for module in (model.layers[1], model.layers[1].ln1, model.layers[1].attn, model.ln_final):
        handle = module.register_forward_pre_hook(lambda module, args: edit(args[0]))
        try:
            _, cache = model.run_with_cache(tokens)
        finally:
            handle.remove()
        first = "blocks.0.hook_resid_post"
        assert torch.equal(cache[first], expected[first]), module
    hooked: dict[str, torch.nn.Module] = {
        "blocks.0.hook_resid_post": model.layers[0],
        "hook_pos_embed": model.embed,
    }
    for name, owner in hooked.items():
        handle = owner.register_forward_hook(lambda module, args, out: edit(out))
        try:
            _, cache = model.run_with_cache(tokens)
        finally:
            handle.remove()
        assert torch.equal(cache[name], expected[name]), name
        assert not torch.equal(
            cache["blocks.1.hook_resid_pre"], expected["blocks.1.hook_resid_pre"]
        )


def test_without_hooks_nothing_is_copied(make_model: MakeModel) -> None:
    model = make_model()
    x = torch.ones(2, 3)
    point = model.hook_embed
    assert point(x) is x
    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: None)]):
        assert point(x) is not x


def test_a_hook_point_that_is_not_made_cannot_be_hooked(make_model: MakeModel) -> None:
    """It would never be called."""
    model = make_model()
    with pytest.raises(KeyError, match="hook_result"):
        model.run_with_hooks(
            some_tokens(model.settings, 2),
            fwd_hooks=[("blocks.0.attn.hook_result", lambda x, hook: None)],
        )


def test_a_hook_on_the_model_itself_leaves_the_tokens_as_they_are(make_model: MakeModel) -> None:
    model = make_model()
    tokens = some_tokens(model.settings, 2)
    given = tokens.clone()
    handle = model.register_forward_pre_hook(lambda module, args: edit(args[0].zero_()))
    try:
        model(tokens, read=[2])
    except IndexError:  # there is no such token after the edit
        pass
    finally:
        handle.remove()
    assert torch.equal(tokens, given)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_global_hooks_on_gradients_leave_edits_in_place_possible(make_model: MakeModel) -> None:
    model = make_model()
    handle = torch_module.register_module_full_backward_hook(lambda module, ins, outs: None)
    try:
        logits = model.run_with_hooks(
            some_tokens(model.settings, 2),
            fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: edit(x))],
        )
        logits.sum().backward()
    finally:
        handle.remove()
