"""The fast form of the forward pass: it computes only rows that are needed, each of them once.

Its logits and gradients equal those of the form with hooks (layers.py), except for rounding, and
for b_K, which gets no gradient. rows.py says what a row is, and when two rows are the same. Each
product of matrices is computed in the cheaper order:

- A constant query (rows.py) is multiplied by W_Q and W_K^T. The resulting vector is multiplied with
  the rows that the keys would be made of. No keys are computed.
- A single head with d_head = d_model needs no keys either. If there are more queries than d_model,
  W_Q W_K^T is computed first.
- Such a head mixes rows, by its attention pattern, before or after the product with W_V W_O: where
  there are fewer rows. In the last layer, if only W_U follows, it can also mix after W_U.
- A query with a single key puts all its attention there. No score is computed.
- b_K is left out. It adds the same number to all scores of a query, and the softmax cancels this.
"""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toycircuits.core.fast_attention import FastAttention
from toycircuits.core.layers import LAYER_NORM_EPS, MLP, Block, Identity, LayerNorm
from toycircuits.core.plans import Plan
from toycircuits.core.rows import Part, Rows, as_slice, side_by_side

if TYPE_CHECKING:  # that module imports this one
    from toycircuits.core.transformer import Transformer


def logits(
    model: "Transformer", tokens: Int[Tensor, "batch all_pos"], plan: Plan
) -> Float[Tensor, "batch read d_vocab_out"]:
    """The logits at the positions that `plan` reads."""
    rows = _embed(model, tokens, plan)
    for block, layer in zip(model.layers[:-1], plan.layers[:-1], strict=True):
        normed = _normalized(block.ln1, rows)
        attention = FastAttention(model, block.attn, normed, layer, tokens)
        rows = _with_mlp(block, attention.add_to(rows))
    last, layer = model.layers[-1], plan.layers[-1]
    normed = _normalized(last.ln1, rows)
    may_unembed = isinstance(model.ln_final, Identity) and last.mlp is None
    attention = FastAttention(model, last.attn, normed, layer, tokens, may_unembed)
    if attention.order == "unembed":
        out = attention.add_to(rows.take(layer.queries).apply(lambda x: x @ model.unembed.W_U))
    else:
        out = _normalized(model.ln_final, _with_mlp(last, attention.add_to(rows)))
        out = out.apply(lambda x: x @ model.unembed.W_U)
    if model.settings.use_bias:
        out = out.replaced([part.values + model.unembed.b_U for part in out.parts])
    found = [part.at("batch", tokens) for part in out.parts]
    together = side_by_side(found, len(tokens))
    positions = [position for part in out.parts for position in part.positions]
    order = [positions.index(position) for position in plan.read]
    return together if positions == [*plan.read] else together[:, order]


def _embed(model: "Transformer", tokens: Tensor, plan: Plan) -> Rows:
    """The residual stream before the first layer."""
    W_E, W_pos = model.embed.W_E, model.pos_embed.W_pos
    parts = []
    for kind, positions in plan.inputs.items():
        if not positions:
            continue
        if kind == "constant":
            embedded = F.embedding(plan.fixed, W_E).unsqueeze(0)
        elif kind == "table":
            embedded = W_E.unsqueeze(1)
        else:
            embedded = F.embedding(tokens[:, as_slice(positions)], W_E)
        columns = positions if kind == "table" else ()
        parts.append(Part(kind, embedded + W_pos[as_slice(positions)], positions, columns))
    return Rows(tuple(parts))


def _with_mlp(block: Block, rows: Rows) -> Rows:
    """The residual stream after the MLP, if there is one."""
    if block.mlp is None:
        return rows
    mlp = block.mlp
    written = _normalized(block.ln2, rows).apply(lambda x: _mlp_output(mlp, x))
    pairs = zip(rows.parts, written.parts, strict=True)
    return rows.replaced([before.values + out.values for before, out in pairs])


def _mlp_output(mlp: MLP, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    pre = x @ mlp.W_in + mlp.b_in if mlp.use_bias else x @ mlp.W_in
    # ReLU in place saves memory: `pre` is the largest of all tensors, and nothing else reads it.
    post = F.relu_(pre) if mlp.activation is F.relu else mlp.activation(pre)
    return post @ mlp.W_out + mlp.b_out if mlp.use_bias else post @ mlp.W_out


def _normalized(layer: LayerNorm | Identity, rows: Rows) -> Rows:
    """The rows after LayerNorm, if there is one."""
    if isinstance(layer, Identity):
        return rows
    norm = layer
    return rows.replaced(
        [F.layer_norm(p.values, norm.w.shape, norm.w, norm.b, LAYER_NORM_EPS) for p in rows.parts]
    )
