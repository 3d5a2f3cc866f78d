"""`transformer_lens.tools.analysis`, `head_detector` and `SVDInterpreter`, against other ways."""

from typing import Any

import pytest
import torch
from made_lens import HAVE_MLP, SLICES, WITHOUT_MLP, Made, make
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import SVDInterpreter
from transformer_lens.head_detector import detect_head
from transformer_lens.tools import analysis

WITH_FULL_VOCABULARY = [name for name in SLICES if name != "modular_arithmetic"]
SHORTER = "The sequence must be non-empty and must fit within the model's context window"


@pytest.fixture(params=SLICES)
def made(request: pytest.FixtureRequest) -> Made:
    return make(request.param)


def logits_of(made: Made, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return made.model(tokens)


def test_the_logit_lens_ends_at_the_logits(made: Made) -> None:
    lens = analysis.logit_lens(made.model, made.clean, positions=None)
    logits = logits_of(made, made.clean)
    assert_close(lens.values[-1], logits)
    for layer in range(made.model.cfg.n_layers):
        resid = made.model(made.clean, stop_at_layer=layer)
        with torch.no_grad():
            expected = made.model.unembed(made.model.ln_final(resid))
        assert_close(lens.values[layer], expected)
    targets = made.clean % made.model.cfg.d_vocab_out
    ranked = analysis.logit_lens(made.model, made.clean, positions=None, targets=targets)
    answer = logits.gather(2, targets.unsqueeze(2))
    assert torch.equal(ranked.rank_trajectory()[-1], (logits > answer).sum(2))


def test_a_readout_is_the_unembedding(made: Made) -> None:
    vectors = made.model.W_E[:3].detach()
    readout = analysis.logit_readout(made.model, vectors, return_type="log_probs")
    with torch.no_grad():
        expected = made.model.unembed(made.model.ln_final(vectors[None]))[0].log_softmax(-1)
    assert_close(readout.values, expected, check_dtype=False)  # it takes softmaxes in float32


@pytest.mark.parametrize("unit", ["component", "head"])
def test_direct_logit_attribution_adds_up(made: Made, unit: str) -> None:
    model = made.model
    logits, b = logits_of(made, made.clean)[:, -1], torch.zeros(())
    if model.cfg.normalization_type:
        b = (model.ln_final.b @ model.W_U).detach()
    expected = (logits - model.b_U.detach() - b)[:, 1]
    found = analysis.direct_logit_attribution(model, made.clean, answer_tokens=1, unit=unit)
    total = found.attribution.sum(0).detach()
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    assert len(found.labels) == (n_layers * n_heads + 1 if unit == "head" else len(found.labels))
    assert_close(total, expected)


@pytest.mark.parametrize("name", SLICES)
def test_attribution_by_layer_needs_mlps(name: str) -> None:
    made = make(name)
    if name in WITHOUT_MLP:
        with pytest.raises(KeyError, match="hook_resid_mid: this model has no MLPs"):
            analysis.direct_logit_attribution(made.model, made.clean, 1, unit="layer")
        return
    found = analysis.direct_logit_attribution(made.model, made.clean, 1, unit="layer")
    whole = analysis.direct_logit_attribution(made.model, made.clean, 1).attribution.sum(0)
    assert_close(found.attribution[-1], whole)


def last_logits(made: Made) -> Any:
    return lambda tokens: made.model(tokens)[:, -1]


def replaced(x: Tensor, position: int, row: Tensor) -> Tensor:
    x = x.clone()
    x[:, position] = row
    return x


def test_an_interchange_of_everything_is_a_patch(made: Made) -> None:
    """With a basis of the whole space, the activation at the position becomes the source's."""
    name, d_model = "blocks.0.hook_resid_post", made.model.cfg.d_model
    at = torch.full((3,), made.middle)
    task_logits = last_logits(made)
    source = analysis.collect_activations(made.model, name, made.clean, task_logits, positions=at)
    with torch.no_grad():
        _, cache = made.model.run_with_cache(made.clean)
    assert_close(source, cache[name][:, made.middle])

    def patch(x: Tensor, hook: object) -> Tensor:
        return replaced(x, made.middle, source)

    everything = analysis.SubspaceInterchange(torch.eye(d_model).double())
    arguments = (made.corrupted, source, task_logits)
    found = analysis.intervened_logits(made.model, name, everything, *arguments, positions=at)
    with torch.no_grad():
        expected = made.model.run_with_hooks(made.corrupted, fwd_hooks=[(name, patch)])[:, -1]
    assert_close(found, expected)
    nothing = analysis.SubspaceInterchange(torch.eye(d_model).double(), strength=0.0)
    found = analysis.intervened_logits(made.model, name, nothing, *arguments, positions=at)
    unpatched = logits_of(made, made.corrupted)[:, -1]
    assert_close(found, unpatched)
    assert (expected - unpatched).abs().max() > 1e-3  # the patch does something


def test_a_placebo_moves_as_far_in_another_direction(made: Made) -> None:
    name, d_model = "blocks.0.hook_resid_post", made.model.cfg.d_model
    at, task_logits = torch.full((3,), made.middle), last_logits(made)
    source = analysis.collect_activations(made.model, name, made.clean, task_logits, positions=at)
    base = analysis.collect_activations(made.model, name, made.corrupted, task_logits, positions=at)
    one = analysis.mean_difference_basis(torch.cat([source, base]), [0, 0, 0, 1, 1, 1]).double()
    interchange = analysis.SubspaceInterchange(one)
    other = analysis.random_basis(d_model, 1, seed=0).double()
    placebo = analysis.NormMatchedPlacebo(interchange, other)
    moved, as_far = interchange(base, source) - base, placebo(base, source) - base
    assert_close(moved.norm(dim=1), as_far.norm(dim=1))
    assert not torch.allclose(moved.abs(), as_far.abs(), atol=1e-3)
    arguments = (made.corrupted, source, task_logits)
    found = analysis.intervened_logits(made.model, name, placebo, *arguments, positions=at)
    with torch.no_grad():
        _, cache = made.model.run_with_cache(made.corrupted)
        resid = replaced(cache[name], made.middle, placebo(base, source))
        edit = [(name, lambda x, hook: resid)]
        expected = made.model.run_with_hooks(made.corrupted, fwd_hooks=edit)[:, -1]
    assert_close(found, expected)


def test_a_learned_subspace_and_its_controls(made: Made) -> None:
    """On arbitrary targets and on a model without training, as TransformerLens advises."""
    model, name = made.model.float(), "blocks.0.hook_resid_post"
    n_classes = model.cfg.d_vocab_out
    targets = analysis.arbitrary_targets([*map(tuple, made.clean.tolist())], n_classes, seed=0)
    untrained = analysis.reinitialized(model, seed=0)
    trained = [p.requires_grad for p in model.parameters()]
    for used in (model, untrained):
        at = torch.full((3,), made.middle)
        result = analysis.fit_das(
            *(
                used,
                name,
                made.corrupted,
                made.clean,
                targets,
                lambda tokens, used=used: used(tokens)[:, -1],
            ),
            **{"rank": 2, "base_positions": at, "source_positions": at, "epochs": 30},
        )
        assert result.losses[-1] < result.losses[0]
        assert_close(result.basis.T @ result.basis, torch.eye(2), atol=1e-5, rtol=0)
    assert [p.requires_grad for p in model.parameters()] == trained


def test_the_projection_kernel_of_heads_is_that_of_their_matrices(made: Made) -> None:
    model = made.model
    found = analysis.attention_head_subspace_affinity(model, target_role="Q", layer_order="all")
    written = torch.linalg.qr(model.W_O[0, 1].T.detach())[0]
    for layer in range(model.cfg.n_layers):
        read = torch.linalg.qr(model.W_Q[layer, 0].detach())[0]
        assert_close(found.scores[0, 1, layer, 0], (written.T @ read).square().sum())
    bases = [
        analysis.orthonormal_subspace(w.detach()) for w in (model.W_O[0, 1].T, model.W_Q[0, 0])
    ]
    assert_close(analysis.projection_kernel(*bases).score, found.scores[0, 1, 0, 0])


def test_a_sparse_probe_finds_the_feature_that_makes_the_labels(made: Made) -> None:
    """It is the entry of an activation that varies most; the labels say if it is large."""
    hook = "blocks.0.hook_attn_out"
    with torch.no_grad():
        _, cache = made.model.run_with_cache(made.tokens, names_filter=hook)
    features = cache[hook][:, made.middle]
    planted = int(features.std(0).argmax())
    labels = features[:, planted] > features[:, planted].mean()
    result = analysis.fit_sparse_probe(features, labels, k=1, preprocess="standardize")
    assert result.selected_features.tolist() == [planted]
    assert result.metrics.accuracy > 0.9
    sweep = analysis.sweep_sparse_probe(
        features, labels, ks=[1, 2], n_random_subsets=5, n_label_shuffles=5
    )
    controls = (sweep.random_coordinate_controls[0], sweep.label_shuffle_controls[0])
    assert all(control.accuracy.mean() < result.metrics.accuracy for control in controls)


@pytest.mark.parametrize("name", HAVE_MLP)
def test_attribution_patching_is_the_gradient_times_the_difference(name: str) -> None:
    made = make(name)
    model, hook = made.model, "blocks.0.attn.hook_z"

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, 1]

    clean, corrupted = made.clean[:1], made.corrupted[:1]
    found = analysis.attribution_patch(model, clean, corrupted, metric)
    with torch.no_grad():
        _, of_clean = model.run_with_cache(clean)
        _, of_corrupted = model.run_with_cache(corrupted)
    z = of_corrupted[hook].clone().requires_grad_()
    logits = model.run_with_hooks(corrupted, fwd_hooks=[(hook, lambda x, hook: z)])
    (gradient,) = torch.autograd.grad(metric(logits), z)
    effects = ((of_clean[hook] - of_corrupted[hook]) * gradient)[0].sum(-1)
    nodes = {
        (node.position, node.head): score
        for node, score in found.node_scores.items()
        if node.kind == "attn_head_out" and node.layer == 0
    }
    assert len(nodes) == effects.numel()
    for place, score in nodes.items():
        assert score == pytest.approx(effects[place].item(), abs=1e-9)
    assert effects.abs().max() > 1e-3


@pytest.mark.parametrize("name", HAVE_MLP)
def test_edges_add_up_to_nodes_and_a_whole_circuit_is_faithful(name: str) -> None:
    made = make(name)
    model = made.model
    arguments = (model, made.clean[:1], made.corrupted[:1], lambda logits: logits[0, -1, 1])
    by_node = analysis.attribution_patch(*arguments)
    config = analysis.EdgeAttributionConfig(granularity="edge")
    by_edge = analysis.attribution_patch(*arguments, config=config)
    assert not model.cfg.use_split_qkv_input
    for node, score in by_node.node_scores.items():
        assert by_edge.node_scores[node] == pytest.approx(score, abs=1e-9)
    edges = [*by_edge.edge_scores]
    everything = analysis.faithfulness(*arguments, edges)
    assert everything.recovered == pytest.approx(1)
    assert analysis.faithfulness(*arguments, []).recovered == pytest.approx(0)
    some = analysis.faithfulness(*arguments, edges[: len(edges) // 2])
    assert abs(some.recovered - 1) > 1e-3


@pytest.mark.parametrize("name", WITHOUT_MLP)
def test_attribution_patching_needs_mlps(name: str) -> None:
    made = make(name)
    arguments = (made.model, made.clean[:1], made.corrupted[:1], lambda logits: logits[0, -1, 1])
    with pytest.raises(ValueError, match=r"missing from the cache: blocks\.0\.hook_mlp_out"):
        analysis.attribution_patch(*arguments)
    config = analysis.EdgeAttributionConfig(granularity="edge")
    with pytest.raises(ValueError, match="this model has no MLPs"):
        analysis.attribution_patch(*arguments, config=config)
    assert not made.model.cfg.use_split_qkv_input


def test_the_jacobian_lens_says_what_it_needs(made: Made) -> None:
    with pytest.raises((TypeError, ValueError), match="TransformerBridge"):
        analysis.JacobianLens.fit(made.model, ["a"], corpus="")


def test_head_detection_is_the_share_of_attention(made: Made) -> None:
    """TransformerLens's detector takes sequences shorter than the context only."""
    tokens = made.clean[:1, :-1]
    scores = detect_head(made.model, tokens, "previous_token_head")
    with torch.no_grad():
        _, cache = made.model.run_with_cache(tokens)
    for layer in range(made.model.cfg.n_layers):
        pattern = cache["pattern", layer][0]
        before = pattern.diagonal(-1, 1, 2).sum(-1)
        assert_close(scores[layer], before / pattern.sum((1, 2)))
    with pytest.raises(AssertionError, match=SHORTER):
        detect_head(made.model, made.clean[:1], "previous_token_head")
    with pytest.raises(ValueError, match="there is no tokenizer"):
        detect_head(made.model, "a b", "previous_token_head")


@pytest.mark.parametrize("name", WITH_FULL_VOCABULARY)
def test_singular_vectors_are_those_of_the_matrices(name: str) -> None:
    model = make(name).model
    interpreter = SVDInterpreter(model)
    of_mlps = [] if model.cfg.attn_only else ["w_in", "w_out"]
    for kind in ["OV", *of_mlps]:
        head = 1 if kind == "OV" else None
        found = interpreter.get_singular_vectors(kind, 0, num_vectors=2, head_index=head)
        if kind == "OV":
            matrix = model.OV[0, 1].AB
        elif kind == "w_out":
            matrix = model.W_out[0]
        else:
            matrix = model.W_in[0].T * (model.blocks[0].ln2.w)
        V = torch.linalg.svd(matrix.detach())[2][:2]
        expected = (V @ model.W_U).T.detach()
        if matrix.detach().std() < 1e-12 or name == "list_copy, in_place":
            continue  # OV is the identity there: any direction is a singular vector
        assert_close(found[:, 0].abs(), expected.abs(), atol=1e-4, rtol=1e-4)  # signs are free


def test_singular_vectors_need_as_many_outputs_as_inputs() -> None:
    interpreter = SVDInterpreter(make("modular_arithmetic").model)
    with pytest.raises(AssertionError, match="Vectors shape should be"):
        interpreter.get_singular_vectors("OV", 0, num_vectors=2, head_index=0)


@pytest.mark.parametrize("name", WITHOUT_MLP)
def test_singular_vectors_of_mlps_need_mlps(name: str) -> None:
    interpreter = SVDInterpreter(make(name).model)
    with pytest.raises(NotImplementedError, match="does not expose a single dense MLP weight"):
        interpreter.get_singular_vectors("w_in", 0, num_vectors=2)
