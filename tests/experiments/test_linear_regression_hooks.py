"""Hooks of the model of in-context regression: all fire, and an edit changes nothing else."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_regression import LENGTHS, make_model, settings, stack
from torch import Tensor, nn

from toycircuits.experiments.linear_regression import model, task

SHAPES = [None, stack(), stack(tied=True, residual=True)]
POINTS = ["q", "k", "v", "attn_scores", "pattern", "z", "result"]
Hook = Callable[[Tensor], Tensor]


def made(shape: dict[str, Any] | None, heads: int = 2) -> model.InContextAttention:
    return make_model(settings(), n_heads=heads, stack=shape)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    some = task.sample(batch, settings(n_examples=7), torch.Generator().manual_seed(0))
    return some["z"], some["z_q"]


def edit(x: Tensor) -> Tensor:
    return x.mul_(0.5).add_(0.25)


def edit_copy(x: Tensor) -> Tensor:
    return edit(x.clone())


def results(
    network: model.InContextAttention, name: str, change: Hook, batch: int, **options: Any
) -> list[Tensor]:
    """Predictions and, where gradients are on, the gradients of weights and inputs."""
    z, z_q = inputs(batch)
    if torch.is_grad_enabled():
        z.requires_grad_(), z_q.requires_grad_()
    before = [z.detach().clone(), z_q.detach().clone()]
    before += [parameter.detach().clone() for parameter in network.parameters()]
    fwd_hooks = [(name, lambda x, hook: change(x))]
    predicted = network.run_with_hooks(z, z_q, fwd_hooks=fwd_hooks, **options)
    assert all(map(torch.equal, before, [z, z_q, *network.parameters()]))
    if not torch.is_grad_enabled():
        return [predicted]
    of = [z, z_q, *network.parameters()]
    gradients = torch.autograd.grad(predicted.pow(2).sum(), of, allow_unused=True)
    return [predicted, *(x for x in gradients if x is not None)]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_edit_in_place_is_that_of_a_copy(
    shape: dict[str, Any] | None, batch: int, heads: int, gradients: bool
) -> None:
    network = made(shape, heads)
    names = [
        f"blocks.{n}.attn.hook_{point}"
        for n in range(network.settings.n_layers)
        for point in POINTS
    ]
    assert sorted(names) == sorted(network.hook_dict)
    with torch.set_grad_enabled(gradients):
        untouched = results(network, names[0], torch.clone, batch)
        for name, lengths in itertools.product(names, [None, LENGTHS]):
            in_place, of_copy = (
                results(network, name, hook, batch, lengths=lengths) for hook in (edit, edit_copy)
            )
            assert len(in_place) == len(of_copy)
            assert all(map(torch.equal, in_place, of_copy))
            again = results(network, names[0], torch.clone, batch)
            assert all(map(torch.equal, untouched, again))
            if lengths is None:
                assert not torch.allclose(in_place[0], untouched[0], rtol=1e-4)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cached_activations_share_no_memory(
    shape: dict[str, Any] | None, batch: int, gradients: bool
) -> None:
    network, (z, z_q) = made(shape, heads=1), inputs(batch)
    with torch.set_grad_enabled(gradients):
        predicted, cache = network.run_with_cache(z, z_q)
    tensors = [z, z_q, predicted, *network.parameters(), *cache.values()]
    assert len(cache) == 7 * network.settings.n_layers
    assert len({x.untyped_storage().data_ptr() for x in tensors}) == len(tensors)
    before = {name: value.clone() for name, value in cache.items()}
    for name in cache:
        with torch.no_grad():
            cache[name].zero_()
        before[name].zero_()
        assert all(torch.equal(cache[other], before[other]) for other in cache)
    with torch.set_grad_enabled(gradients):
        assert torch.equal(network(z, z_q), predicted)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_every_hook_fires(shape: dict[str, Any] | None, factored: bool, kind: str) -> None:
    """But on the list of layers, which PyTorch never calls."""
    network, (z, z_q) = made(shape), inputs(2)
    z.requires_grad_(), z_q.requires_grad_()  # PyTorch warns of backward hooks otherwise
    expected = network(z, z_q)
    modules = {name: m for name, m in network.named_modules() if not isinstance(m, nn.ModuleList)}
    assert {"", "blocks.0", "blocks.0.attn", "blocks.0.attn.hook_z"} <= modules.keys()
    for name, module in modules.items():
        fired: list[str] = []
        handle = getattr(module, f"register_{kind}_hook")(
            lambda *_, fired=fired, name=name: fired.append(name)
        )
        predicted = network(z, z_q, factored=factored)
        predicted.sum().backward()
        handle.remove()
        assert fired == [name], name
        # The fast form rounds differently; it runs where only the model itself has a hook.
        assert torch.allclose(predicted, expected, atol=1e-6)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", ["blocks.0", "blocks.0.attn", "blocks.1", "blocks.1.attn"])
def test_edits_of_what_goes_into_a_layer_and_comes_out_stay_there(
    name: str, gradients: bool
) -> None:
    network, (z, z_q) = made(stack(residual=True)), inputs(1)
    module, before = network.get_submodule(name), [z.clone(), z_q.clone()]

    def edited(hook: Hook) -> list[Tensor]:
        with torch.set_grad_enabled(gradients):
            pre = module.register_forward_pre_hook(
                lambda _, given: tuple(map(hook, given[:2])) + given[2:]
            )
            first = network(z, z_q)
            pre.remove()
            post = module.register_forward_hook(lambda _, given, out: hook(out))
            second = network(z, z_q)
            post.remove()
        return [first, second]

    in_place, of_copy, untouched = edited(edit), edited(edit_copy), edited(torch.clone)
    assert all(map(torch.equal, in_place, of_copy))
    assert not any(map(torch.equal, in_place, untouched))
    assert all(map(torch.equal, before, [z, z_q]))


@pytest.mark.parametrize("factored", [False, True])
def test_a_hook_on_the_model_itself_leaves_the_inputs_as_they_are(factored: bool) -> None:
    network, (z, z_q) = made(None), inputs(2)
    before = z.clone()
    handle = network.register_forward_pre_hook(lambda module, args: (edit(args[0]), args[1]))
    changed = network(z, z_q, factored=factored)
    handle.remove()
    assert torch.equal(z, before)
    assert not torch.equal(changed, network(z, z_q))


def test_the_factored_form_refuses_second_derivatives() -> None:
    """It saves what it computes, which second derivatives would take for constants."""
    network, (z, z_q) = made(None), inputs(2)
    weights = [*network.parameters()]
    for factored in (False, True):
        total = network(z, z_q, factored=factored).square().sum()
        first = torch.autograd.grad(total, weights, create_graph=True)
        if factored:
            with pytest.raises(RuntimeError, match=r"once_differentiable|not have been used"):
                torch.autograd.grad(first[0].square().sum(), weights)
        else:
            torch.autograd.grad(first[0].square().sum(), weights, allow_unused=True)


def test_a_model_made_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        network = made(stack())
    network(*inputs(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
