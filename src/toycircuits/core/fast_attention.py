"""The attention of the fast form (fast_form.py), which computes each distinct row once."""

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from toycircuits.core.layers import Attention
from toycircuits.core.plans import Group, LayerPlan
from toycircuits.core.products import dot_products, table_products, weighted_sums
from toycircuits.core.rows import Kind, Part, Rows, side_by_side

if TYPE_CHECKING:  # that module imports this one
    from toycircuits.core.transformer import Transformer


class FastAttention:
    """What attention adds to the residual stream of one layer.

    Attributes:
        order: where the attention pattern mixes the rows.
            "heads": between W_V and W_O, as usual. All others need a single head of width d_model.
            "after": W_V W_O comes after the mixing.
            "before": W_V W_O comes before the mixing.
            "unembed": W_V W_O and W_U come before the mixing, and the results are logits.
    """

    def __init__(
        self,
        model: "Transformer",
        attn: Attention,
        rows: Rows,
        layer: LayerPlan,
        tokens: Tensor,
        may_unembed: bool = False,
    ) -> None:
        """Prepare the attention of a layer.

        Args:
            rows: the residual stream before the layer, normalized.
            may_unembed: whether the unembedding reads the layer's results directly, with no MLP
                and no LayerNorm between.
        """
        self.settings, self.attn, self.W_U = model.settings, attn, model.unembed.W_U
        self.rows, self.layer, self.tokens = rows, layer, tokens
        self.wide = self.settings.n_heads == 1 and self.settings.d_head == self.settings.d_model
        self.order = self._cheapest_order(may_unembed)

    def _cheapest_order(self, may_unembed: bool) -> Literal["heads", "after", "before", "unembed"]:
        if not self.wide:
            return "heads"
        n_results = sum(len(group.members) * self._n(group.kind) for group in self.layer.groups)
        n_values = self.rows.take(self.layer.keys).count
        if may_unembed and n_values + self.rows.take(self.layer.queries).count < n_results:
            return "unembed"
        return "before" if n_values < n_results else "after"

    def _n(self, kind: Kind) -> int:
        """Size of the first axis of rows of this kind."""
        return {"constant": 1, "table": self.settings.d_vocab, "batch": len(self.tokens)}[kind]

    def add_to(self, resid: Rows) -> Rows:
        """The sum of `resid` and what attention writes, at the queries.

        Args:
            resid: the residual stream before the layer; if `order` is "unembed", its logits.
        """
        parts = []
        for part in self._results().parts:
            for before in resid.take(part.positions).parts:
                written = part.take(before.positions)
                total = before.at(part.kind, self.tokens) + written.values
                parts.append(Part(part.kind, total, written.positions, written.columns))
        parts += self._of_blind_queries(resid)
        return Rows.merged(parts)

    def _of_blind_queries(self, resid: Rows) -> tuple[Part, ...]:
        """`resid` at the queries without keys, to which attention adds only its bias."""
        rows = resid.take(self.layer.blind)
        if not self.settings.use_bias:
            return rows.parts
        bias = self.attn.b_O @ self.W_U if self.order == "unembed" else self.attn.b_O
        return rows.replaced([part.values + bias for part in rows.parts]).parts

    def _results(self) -> Rows:
        """What attention writes, for all queries that have keys."""
        if not self.layer.groups:
            return Rows(())
        values = self._values()
        mixed = Rows.merged([self._mixed(group, values) for group in self.layer.groups])
        flat = mixed.replaced([part.values.flatten(2) for part in mixed.parts])
        if self.order == "after":
            return flat.apply(self._value_output)
        return flat.apply(self._output) if self.order == "heads" else flat

    def _values(self) -> Rows:
        """What the pattern mixes: for each key, values [head, d]; d depends on `order`."""
        keys = self.rows.take(self.layer.keys)
        heads = self.settings.n_heads
        if self.order == "before":
            keys = keys.apply(self._value_output)
        elif self.order == "unembed":
            keys = keys.apply(lambda x: self._value_output(x) @ self.W_U)
        elif self.order == "heads" and not self.settings.freeze_W_V:
            W_V = _joined_heads(self.attn.W_V)
            keys = keys.apply(lambda x: x @ W_V)
            keys = keys.replaced([part.values.unflatten(2, (heads, -1)) for part in keys.parts])
            return self._biased(keys)
        shared = [part.values.unsqueeze(2) for part in keys.parts]
        if self.order != "heads":
            return keys.replaced(shared)
        return self._biased(keys.replaced([x.expand(-1, -1, heads, -1) for x in shared]))

    def _biased(self, values: Rows) -> Rows:
        if not self.settings.use_bias:
            return values
        return values.replaced([part.values + self.attn.b_V for part in values.parts])

    def _value_output(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """For a single head, x W_V W_O plus biases; W_V W_O first if there are many rows."""
        W_V, W_O = self.attn.W_V[0], self.attn.W_O[0]
        if self.settings.freeze_W_V and self.settings.freeze_W_O:
            y = x
        elif self.settings.freeze_W_V or self.settings.freeze_W_O:
            y = x @ (W_O if self.settings.freeze_W_V else W_V)
        else:
            y = x @ (W_V @ W_O) if len(x) > len(W_V) else x @ W_V @ W_O
        if not self.settings.use_bias:
            return y
        b_V = self.attn.b_V[0] if self.settings.freeze_W_O else self.attn.b_V[0] @ W_O
        return y + (b_V + self.attn.b_O)

    def _output(self, z: Float[Tensor, "row head_d_head"]) -> Float[Tensor, "row d_model"]:
        """What the heads write."""
        if self.settings.freeze_W_O:
            out = z.unflatten(1, (self.settings.n_heads, -1)).sum(1)
        else:
            out = z @ self.attn.W_O.flatten(0, 1)
        return out + self.attn.b_O if self.settings.use_bias else out

    def _mixed(self, group: Group, values: Rows) -> Part:
        """For each query of a group, the sum of the values, weighted by its pattern."""
        n = self._n(group.kind)
        one = values.take(group.single_keys)
        pieces = [part.at(group.kind, self.tokens) for part in one.parts]
        if group.queries:
            pattern = self._pattern(group)
            sums, start = [], 0
            for part in values.take(group.keys).parts:
                stop = start + len(part.positions)
                v = part.at(group.kind, self.tokens).transpose(1, 2)
                sums.append(weighted_sums(pattern[..., start:stop], v))
                start = stop
            pieces.append(sum(sums[1:], start=sums[0]).transpose(1, 2))
        columns = () if group.column is None else (group.column,) * len(group.members)
        return Part(group.kind, side_by_side(pieces, n), group.members, columns)

    def _pattern(self, group: Group) -> Float[Tensor, "batch head query key"]:
        """The attention pattern of the queries with several keys."""
        n = self._n(group.kind)
        queries, keys = self.rows.take(group.queries), self.rows.take(group.keys)
        some_form_keys = not self.wide and any(part.kind != "constant" for part in queries.parts)
        formed = self._formed_keys(keys) if some_form_keys else keys
        scores = []
        for part in queries.parts:
            if part.kind == "constant":
                found = self._constant_scores(part, keys, group.kind)
            else:
                found = self._scores(part, formed, group.kind)
            scores.append(side_by_side(found, n, axis=3))
        joined = side_by_side(scores, n, axis=2)
        if group.forbidden is not None:
            joined = joined.masked_fill(group.forbidden, -torch.inf)
        return joined.softmax(-1)

    def _constant_scores(self, part: Part, keys: Rows, kind: Kind) -> list[Tensor]:
        """Scores [n, head, query, key] of constant queries, for each part of the keys."""
        q = part.values[0] @ self.attn.W_Q  # [head, query, d_head]
        if self.settings.use_bias:
            q = q + self.attn.b_Q.unsqueeze(1)
        vectors = (q / self.settings.d_head**0.5) @ self.attn.W_K.transpose(1, 2)
        flat = vectors.flatten(0, 1).T  # [d_model, head_query]
        found = []
        for key in keys.parts:
            scores = Part(key.kind, key.values @ flat, key.positions, key.columns)
            by_key = scores.at(kind, self.tokens).unflatten(2, vectors.shape[:2])
            found.append(by_key.permute(0, 2, 3, 1))
        return found

    def _scores(self, part: Part, keys: Rows, kind: Kind) -> list[Tensor]:
        """Scores [n, head, query, key] of queries that are no constants, for each part of the keys.

        Args:
            keys: the rows that the keys are made of, or the keys [head, d_head].
        """
        query = self._formed_queries(part)
        found = []
        for key in keys.parts:
            if key.values.ndim == 3:
                key = Part(key.kind, key.values.unsqueeze(2), key.positions, key.columns)
            if query.kind == key.kind == "table" and kind == "batch":
                found.append(table_products(query, key, self.tokens))
            else:
                rows = (x.at(kind, self.tokens).transpose(1, 2) for x in (query, key))
                found.append(dot_products(*rows))
        return found

    def _formed_queries(self, part: Part) -> Part:
        """The queries [head, d_head], scaled; with a single wide head, also multiplied by W_K^T."""
        x = part.values
        scale = self.settings.d_head**-0.5
        if self.wide:
            W_Q, W_K = self.attn.W_Q[0], self.attn.W_K[0].T * scale
            many = x.shape[:2].numel() > len(W_Q)
            q = x @ (W_Q @ W_K) if many else x @ W_Q @ W_K
            if self.settings.use_bias:
                q = q + self.attn.b_Q[0] @ W_K
            q = q.unsqueeze(2)
        else:
            q = (x @ _joined_heads(self.attn.W_Q)).unflatten(2, (self.settings.n_heads, -1))
            q = (q + self.attn.b_Q if self.settings.use_bias else q) * scale
        return Part(part.kind, q, part.positions, part.columns)

    def _formed_keys(self, rows: Rows) -> Rows:
        """The keys [head, d_head], without their bias."""
        W_K = _joined_heads(self.attn.W_K)
        keys = rows.apply(lambda x: x @ W_K)
        heads = self.settings.n_heads
        return keys.replaced([part.values.unflatten(2, (heads, -1)) for part in keys.parts])


def _joined_heads(weight: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "d_model head_d"]:
    """The matrices of all heads as one."""
    return weight.transpose(0, 1).flatten(1)
