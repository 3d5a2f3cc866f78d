"""The weights of a `Transformer` under the names that TransformerLens's tools ask for.

It also has what these tools compute from weights: accumulated biases, the direction of a token in
the residual stream, and weights with LayerNorm folded in. And it can draw new weights, so that a
tool can compare with an untrained model.
"""

import copy
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from toycircuits.core.layers import Block, LayerNorm
from toycircuits.core.transformer import INIT_GAIN, Transformer, TransformerSettings

MLP_WEIGHTS = ("W_in", "b_in", "W_out", "b_out")


class TransformerWithWeights(Transformer):
    """A transformer whose weights have TransformerLens's names.

    Weights of all layers are stacked: W_Q, W_K, W_V [layer, head, d_model, d_head], W_O [layer,
    head, d_head, d_model], W_in [layer, d_model, d_mlp], W_out [layer, d_mlp, d_model], and their
    biases in the same way. A model without MLPs has no W_in, b_in, W_out and b_out: reading them
    raises an `AttributeError`.
    """

    def __init__(self, settings: TransformerSettings, generator: torch.Generator) -> None:
        super().__init__(settings, generator)
        module: Any
        for module in self.modules():
            if [*module.parameters(recurse=False)]:
                # TransformerLens's `reinitialized` calls it to make an untrained model.
                module.reset_parameters = partial(_reset_parameters, module)
                module.init_std = INIT_GAIN / settings.d_model**0.5

    def _block(self, layer: int) -> Block:
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    def _stack(self, name: str) -> Tensor:
        return torch.stack([self.get_parameter(f"blocks.{i}.{name}") for i in self._layers])

    @property
    def _layers(self) -> range:
        return range(self.settings.n_layers)

    def __getattr__(self, name: str) -> Any:
        if name in MLP_WEIGHTS:
            if self.settings.d_mlp is None:
                raise AttributeError(f"{name}: this model has no MLPs")
            return self._stack(f"mlp.{name}")
        return super().__getattr__(name)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Positional embedding."""
        return self.pos_embed.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        """Unembedding."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab_out"]:
        """Bias of the unembedding."""
        return self.unembed.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights."""
        return self._stack("attn.W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights."""
        return self._stack("attn.W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights."""
        return self._stack("attn.W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights."""
        return self._stack("attn.W_O")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases."""
        return self._stack("attn.b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases."""
        return self._stack("attn.b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases."""
        return self._stack("attn.b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output biases."""
        return self._stack("attn.b_O")

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of each head, [layer, head, d_model, d_model], not divided by sqrt(d_head)."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of each head, [layer, head, d_model, d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    def blocks_with(self, name: str) -> list[tuple[int, nn.Module]]:
        """Index and block of each layer that has the submodule `name`."""
        return [(i, block) for i, block in enumerate(self.blocks) if getattr(block, name, None)]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the biases that the layers before `layer` add to the residual stream.

        Args:
            layer: a number from 0 to n_layers. n_layers means all layers.
            mlp_input: add the bias of the attention of `layer`, too.
            include_mlp_biases: add the biases of the MLPs, too.

        Raises:
            ValueError: there is no such layer.
        """
        n_layers = self.settings.n_layers
        if not 0 <= layer <= n_layers - mlp_input:
            raise ValueError(f"layer: found {layer}; allowed are 0 to {n_layers - mlp_input}")
        total = torch.zeros_like(self.W_E[0])
        for i in range(layer + mlp_input):
            total = total + self._block(i).attn.b_O
            mlp = self._block(i).mlp
            if mlp is not None and include_mlp_biases and i < layer:
                total = total + mlp.b_out
        return total

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """The vector whose product with a normalised residual stream gives a token's logit.

        It is the token's column of W_U, times the weight of the last LayerNorm if there is one.
        `ActivationCache.apply_ln_to_stack` centres each component and divides it by the scale.
        The products of these components with the vector add up to the logit, without the biases of
        LayerNorm and unembedding.

        Args:
            tokens: output tokens: an integer, or a tensor of any shape. A tensor of one token gives
                a vector [d_model], whatever its shape.

        Raises:
            ValueError: a token is text, or is not an output token of this model.
        """
        if isinstance(tokens, str) or not isinstance(tokens, int | Tensor):
            raise ValueError(f"tokens: found {tokens!r}; allowed are an integer and a tensor")
        ids = torch.as_tensor(tokens, device=self.W_U.device)
        wrong = ids[(ids < 0) | (ids >= self.settings.d_vocab_out)]
        if len(wrong):
            allowed = f"output tokens from 0 to {self.settings.d_vocab_out - 1}"
            raise ValueError(f"tokens: found {wrong[0].item()}; allowed are {allowed}")
        norm = self.ln_final
        directions = self.W_U.T * norm.w if isinstance(norm, LayerNorm) else self.W_U.T
        return directions[ids.reshape(()) if ids.numel() == 1 else ids]

    def fold_layer_norm(self) -> Self:
        """A copy with the weight and bias of each LayerNorm moved into the matrices that read it.

        Its LayerNorms have weight 1 and bias 0, and it gives the same logits. Products of its
        matrices, such as W_E W_U, are what the model computes, up to centring and scale.

        Raises:
            ValueError: the model has no LayerNorm; or W_V is frozen and cannot take up the weight;
                or the model has no biases to take up the bias.
        """
        settings = self.settings
        if settings.normalization is None:
            raise ValueError("fold_layer_norm: this model has no LayerNorm")
        if settings.freeze_W_V:
            raise ValueError("fold_layer_norm: this model's W_V is frozen and takes no weight")
        folded = copy.deepcopy(self)
        for norm, reading in _readers(folded):
            if norm.b.any() and not settings.use_bias:
                raise ValueError(
                    "fold_layer_norm: this model has no biases that can take that of LayerNorm"
                )
            with torch.no_grad():
                for weight, bias in reading:
                    bias += norm.b @ weight
                    weight *= norm.w.unsqueeze(1)
                norm.w.fill_(1)
                norm.b.zero_()
        return folded


def _readers(model: TransformerWithWeights) -> list[tuple[Any, list[tuple[Tensor, Tensor]]]]:
    """Each LayerNorm, with the weights and biases that read its output."""
    found: list[tuple[Any, list[tuple[Tensor, Tensor]]]] = []
    for block in map(model._block, model._layers):
        attn = block.attn
        reading: list[tuple[Tensor, Tensor]]
        reading = [(attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)]
        found.append((block.ln1, reading))
        if block.mlp is not None:
            found.append((block.ln2, [(block.mlp.W_in, block.mlp.b_in)]))
    return [*found, (model.ln_final, [(model.unembed.W_U, model.unembed.b_U)])]


def _reset_parameters(module: Any) -> None:
    """Draw new initial weights for `module`, from PyTorch's global generator.

    They have the distribution of the initial weights, but are not drawn in their order. Frozen
    weights stay.
    """
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("W_") and parameter.requires_grad:
            nn.init.normal_(parameter, std=module.init_std)
        elif not name.startswith("W_"):
            nn.init.constant_(parameter, 1.0 if name == "w" else 0.0)
