"""Record what TransformerLens 2's tools give for a small model.

Run it in an environment of its own, with TransformerLens 2 and a transformers that still has what
this asks for:

    pip install "transformer-lens==2.15.4" "transformers<5"
    python make_transformer_lens_2_tools.py transformer_lens_2_tools.safetensors

The model is causal, with two layers, LayerNorm and every bias. The file holds its weights, two
batches of tokens, and one tensor for each call of a tool.
"""

import itertools
import sys
from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPE = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 6, "act_fn": "relu"}
SHAPE |= {"d_vocab": 7, "n_ctx": 5, "normalization_type": "LN", "device": "cpu", "seed": 0}
OPTIONAL = ("attn.hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
BATCH, ANSWER = 2, 2  # the metric is the mean logit of the token ANSWER at the last position


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, ANSWER].mean()


def patches(model: Any, clean: Tensor, corrupted: Tensor) -> dict[str, Tensor]:
    from transformer_lens import patching

    _, cache = model.run_with_cache(clean)
    names = [name for name in dir(patching) if name.startswith("get_act_patch_")]
    return {name: getattr(patching, name)(model, corrupted, cache, metric) for name in names}


def optional_activations(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """What the flags switch on, and the gradients there of a loss."""
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    names = [f"blocks.{layer}.{hook}" for layer in (0, 1) for hook in OPTIONAL]
    for setter in ("attn_result", "split_qkv_input", "hook_mlp_in"):
        getattr(model, f"set_use_{setter}")(False)
    return {f"cache/{name}{grad}": cache[name + grad] for name in names for grad in ("", "_grad")}


def decompositions(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    _, cache = model.run_with_cache(tokens)
    made = {"pattern": cache["pattern", 1]}
    for layer, ln in itertools.product((1, 2), (False, True)):
        made[f"decompose_resid/{layer}/{ln}"] = cache.decompose_resid(layer, apply_ln=ln)
        made[f"stack_head_results/{layer}/{ln}"] = cache.stack_head_results(layer, apply_ln=ln)
    last = {"apply_ln": True, "pos_slice": -1}
    for layer in (1, 2):
        made[f"stack_neuron_results/{layer}"] = cache.stack_neuron_results(layer, **last)
        full = cache.get_full_resid_decomposition(layer, **last)
        made[f"get_full_resid_decomposition/{layer}"] = full
    made["decompose_resid/mlp_input"] = cache.decompose_resid(1, mlp_input=True, apply_ln=True)
    made["accumulated_resid"] = cache.accumulated_resid(incl_mid=True)
    made["stack_activation"] = cache.stack_activation("z")
    stack = cache.decompose_resid(pos_slice=-1)
    made["apply_ln_to_stack"] = cache.apply_ln_to_stack(stack, pos_slice=-1)
    return made


def weights_and_outputs(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    made = {"QK": model.QK.AB, "OV": model.OV.AB}
    for layer, mlp_input, mlp in ((1, False, True), (1, True, True), (2, False, False)):
        bias = model.accumulated_bias(layer, mlp_input, include_mlp_biases=mlp)
        made[f"accumulated_bias/{layer}/{mlp_input}/{mlp}"] = bias
    made["embed"], made["pos_embed"] = model.embed(tokens), model.pos_embed(tokens)
    made["unembed"] = model.unembed(made["embed"])
    for stop in (0, 1, -1):
        made[f"stop_at_layer/{stop}"] = model(tokens, stop_at_layer=stop)
    made["logits"], made["loss"] = model(tokens, return_type="both")
    made["loss_per_token"] = model(tokens, return_type="loss", loss_per_token=True)
    return made


def attributions(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Of the same model with LayerNorm folded, as TransformerLens 2 asks for."""
    folded = type(model)(model.cfg)
    folded.load_and_process_state_dict(
        model.state_dict(),
        fold_ln=True,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    logits, cache = folded.run_with_cache(tokens)
    stack = cache.decompose_resid(pos_slice=-1)
    return {
        "folded_logits": logits,
        "logit_attrs": cache.logit_attrs(stack, ANSWER, pos_slice=-1),
        "logit_attrs/difference": cache.logit_attrs(stack, ANSWER, ANSWER + 1, pos_slice=-1),
        "logit_attrs/heads": cache.logit_attrs(cache.stack_head_results(), tokens),
    }


def main() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    model = HookedTransformer(HookedTransformerConfig(**SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        clean, corrupted = torch.randint(7, (2, BATCH, 5))
        found = {f"patching/{name}": x for name, x in patches(model, clean, corrupted).items()}
        found |= decompositions(model, clean) | weights_and_outputs(model, clean)
        found |= attributions(model, clean)
    found |= optional_activations(model, clean)
    tensors = {f"weights/{name}": x for name, x in model.named_parameters()}
    tensors |= {f"found/{name}": x for name, x in found.items()}
    tensors |= {"clean": clean, "corrupted": corrupted}
    made_by = {"made_by": f"transformer_lens {version('transformer_lens')}"}
    copies = {name: x.detach().contiguous().clone() for name, x in tensors.items()}
    save_file(copies, sys.argv[1], made_by)


if __name__ == "__main__":
    main()
