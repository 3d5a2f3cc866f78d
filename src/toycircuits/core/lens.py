"""A `Transformer` with the attributes and methods that TransformerLens's own tools use.

TransformerLens 4 states what its tools need in `transformer_lens.model_protocol`: a configuration,
caches, tokens, and the weights under their names. Trained models have all of it, so that
`transformer_lens.patching`, `ActivationCache` and `transformer_lens.tools.analysis` run on them.
The trainings do not import this module.

The models have no tokenizer: tokens are integers. Calls that make no sense for a model raise an
error, whose message of one line says why.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from toycircuits.core.lens_hooks import TransformerWithFlags
from toycircuits.core.transformer import Transformer, TransformerSettings

Tokens: TypeAlias = Any  # a tensor of integers, an integer, or (nested) lists of integers


class LensTransformer(TransformerWithFlags):
    """A transformer that TransformerLens's tools accept; see the module's docstring.

    It computes what the `Transformer` with the same weights computes, under the same hook names.

    Args:
        next_token: whether the targets of the task are the next tokens of the sequence. If not,
            `return_type="loss"` raises a `ValueError`.
    """

    tokenizer = None

    def __init__(
        self, settings: TransformerSettings, generator: torch.Generator, next_token: bool = False
    ) -> None:
        super().__init__(settings, generator)
        self.next_token = next_token
        self.eval()

    @classmethod
    def of(cls, model: Transformer, next_token: bool = False) -> "LensTransformer":
        """A copy of `model`, with its settings, weights and device, in evaluation mode."""
        like = next(model.parameters())
        lens = cls(model.settings, torch.Generator().manual_seed(0), next_token)
        lens.to(like.device, like.dtype).load_state_dict(model.state_dict())
        return lens

    # Running the model

    def forward(
        self,
        tokens: Tokens,
        read: Sequence[Any] | None = None,
        fixed: bool = False,
        stop_at_layer: int | None = None,
        *,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
    ) -> Any:
        """As `Transformer.forward`, and with TransformerLens's further options.

        Args:
            tokens: a tensor, an integer or (nested) lists of integers.
            stop_at_layer: return the residual stream before this layer; counts from the end if
                negative.
            return_type: "logits", "loss" for the mean loss of the next tokens in nats, "both" for
                (logits, loss), or None.
            loss_per_token: return the loss of each token, [batch, pos - 1], instead of the mean.

        Raises:
            ValueError: as `Transformer.forward`; or the tokens are text, `return_type` or
                `stop_at_layer` has another value than these, or a loss is requested where the
                targets are not the next tokens or `read` leaves out positions.
        """
        if return_type not in ("logits", "loss", "both", None):
            allowed = "'logits', 'loss', 'both' and None"
            raise ValueError(f"return_type: found {return_type!r}; allowed are {allowed}")
        if isinstance(read, str):
            raise ValueError(f"read: found {read!r}; give return_type by its name")
        tokens = self.to_tokens(tokens)
        wants_loss = stop_at_layer is None and return_type in ("loss", "both")
        if wants_loss:
            self._check_next_token(read)
        n_layers = self.settings.n_layers
        if stop_at_layer is not None and not -n_layers <= stop_at_layer <= n_layers:
            allowed = f"{-n_layers} to {n_layers}"
            raise ValueError(f"stop_at_layer: found {stop_at_layer}; allowed are {allowed}")
        out = super().forward(tokens, read, fixed, stop_at_layer)
        if stop_at_layer is not None:
            return out
        if not wants_loss:
            return None if return_type is None else out
        loss = self.loss_fn(out, tokens, per_token=loss_per_token)
        return loss if return_type == "loss" else (out, loss)

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab_out"],
        tokens: Int[Tensor, "batch pos"],
        per_token: bool = False,
    ) -> Float[Tensor, ""] | Float[Tensor, "batch next"]:
        """Cross-entropy in nats of each position's logits with the next position's token.

        Args:
            per_token: return the loss of each token, [batch, pos - 1], instead of the mean.

        Raises:
            ValueError: the targets of the task are not the next tokens.
        """
        self._check_next_token(None)
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return losses if per_token else losses.mean()

    def _check_next_token(self, read: Sequence[int] | None) -> None:
        if not self.next_token:
            raise ValueError(
                "loss: this model's task does not score each next token of the sequence; "
                "call `loss` of its slice's task.py, or compare the logits with run.data"
            )
        if read is not None:
            raise ValueError("loss: needs the logits of all positions; leave out `read`")

    def run_with_cache(
        self,
        tokens: Tokens,
        *args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """What `forward` returns, and the activations that it computes.

        Hooks see all positions. Therefore the cache has all positions, even if `read` is given.

        Args:
            return_cache_object: return TransformerLens's `ActivationCache` and not a plain dict.
            remove_batch_dim: remove the batch axis, whose size must be 1.
            kwargs: those of `HookedRootModule.run_with_cache` and of `forward`.
        """
        kwargs |= {"remove_batch_dim": remove_batch_dim}
        out, cache = super().run_with_cache(self.to_tokens(tokens), *args, **kwargs)
        if not return_cache_object:
            return out, dict(cache)
        return out, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    # Tokens

    def to_tokens(self, tokens: Tokens, prepend_bos: bool | None = None) -> Tensor:
        """The tokens as a tensor [batch, pos].

        Args:
            tokens: a tensor, an integer or (nested) lists of integers.
            prepend_bos: must not be true, because the models have no BOS token.

        Raises:
            ValueError: the tokens are not integers, or have more than two axes; or `prepend_bos` is
                true.
        """
        if prepend_bos:
            raise ValueError("prepend_bos: found True; no tokens are put before a sequence here")
        if not isinstance(tokens, Tensor):
            try:
                tokens = torch.as_tensor(tokens, device=self.W_E.device)
            except (TypeError, ValueError, RuntimeError):
                raise ValueError(self._no_text(tokens)) from None
        if tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.ndim > 2:
            found = f"{tokens.dtype} of shape {tuple(tokens.shape)}"
            raise ValueError(f"tokens: found {found}; allowed are integers, [batch, pos]")
        return tokens if tokens.ndim == 2 else tokens.reshape(1, -1)

    def _no_text(self, tokens: object) -> str:
        allowed = f"integers from 0 to {self.settings.d_vocab - 1}"
        return f"tokens: found {tokens!r}; there is no tokenizer, and allowed are {allowed}"

    def to_single_token(self, token: Any) -> int:
        """The token itself.

        Raises:
            ValueError: it is text, or not a token of this model.
        """
        if isinstance(token, bool) or not isinstance(token, int):
            raise ValueError(self._no_text(token))
        if not 0 <= token < max(self.settings.d_vocab, self.settings.d_vocab_out):
            raise ValueError(self._no_text(token))
        return token

    def to_str_tokens(self, tokens: Tokens, prepend_bos: bool | None = None) -> list[str]:
        """Each token of one sequence as text: its number.

        Raises:
            ValueError: the tokens are text, or more than one sequence.
        """
        rows = self.to_tokens(tokens, prepend_bos)
        if len(rows) != 1:
            raise ValueError(f"tokens: found {len(rows)} sequences; allowed is one")
        return [str(token) for token in rows[0].tolist()]


def targets_are_next_tokens(data: Mapping[str, Tensor]) -> bool:
    """Whether the targets in the tensors of a task are the next token of each position."""
    inputs, targets = data.get("inputs"), data.get("targets")
    return inputs is not None and targets is not None and torch.equal(inputs[:, 1:], targets)


class NoConfig:
    """The `cfg` of a model without tokens. Reading from it raises an error that says so.

    Args:
        model: the class of the model.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a copy asks for these before it has `model`
            raise AttributeError(name)
        raise AttributeError(
            f"cfg.{name}: {self.model} has no tokens; hooks and caches work on it, but not those "
            "tools of TransformerLens that are for models with tokens"
        )
