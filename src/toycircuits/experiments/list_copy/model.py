"""The attention-only transformers that copy a list through one separator token."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from toycircuits.core.config import InputError, Settings
from toycircuits.core.transformer import Transformer, TransformerSettings
from toycircuits.experiments.list_copy.task import DataSettings

# Which keys each query may attend to ("1"), by layout: in all layers, or in the first layer and in
# all others. Rows: queries, columns: keys.
MASKS: dict[str, tuple[tuple[str, ...], ...]] = {
    # Causal, but o1 and o2 do not see d1 and d2: they learn the list through SEP alone.
    "next_token": (
        (
            # d1 d2 SEP o1 o2
            "1....",  # d1
            "11...",  # d2
            "111..",  # SEP
            "..11.",  # o1
            "..111",  # o2
        ),
    ),
    # As above, and a query does not attend to itself. Only d1 does: it has no other key.
    "in_place": (
        (
            # d1 d2 SEP o1 o2
            "1....",  # d1
            "1....",  # d2
            "11...",  # SEP
            "..1..",  # o1
            "..11.",  # o2
        ),
    ),
    # As above, but in the first layer the outputs see nothing: attention adds zero to them.
    "masked": (
        (
            # d1 d2 SEP o1 o2
            "1....",  # d1
            "1....",  # d2
            "11...",  # SEP
            ".....",  # o1
            ".....",  # o2
        ),
        (
            # d1 d2 SEP o1 o2
            "1....",  # d1
            "1....",  # d2
            "11...",  # SEP
            "..1..",  # o1
            "..11.",  # o2
        ),
    ),
}


class ModelSettings(Settings):
    """Size of the model, and which of its matrices are frozen.

    Attributes:
        freeze_W_V, freeze_W_O: keep the matrix at the identity, which needs d_head = d_model.
    """

    n_layers: int = Field(ge=1, le=64)
    n_heads: int = Field(ge=1, le=256)
    d_model: int = Field(ge=1, le=65536)
    d_head: int = Field(ge=1, le=65536)
    normalization: Literal["LN"] | None
    use_bias: bool
    freeze_W_V: bool
    freeze_W_O: bool

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.freeze_W_V or self.freeze_W_O) and self.d_head != self.d_model:
            raise ValueError(
                f"d_head: found {self.d_head}; "
                f"allowed with a frozen W_V or W_O is d_model, {self.d_model}"
            )
        return self


def build(settings: ModelSettings, data: DataSettings, generator: torch.Generator) -> Transformer:
    """The model with initial weights from `generator`; its tokens are the numbers, MASK and SEP.

    Raises:
        InputError: outputs that see nothing in the first layer have no second one.
    """
    first, *further = MASKS[data.layout]
    if further and settings.n_layers == 1:
        why = f"because outputs see nothing in the first layer of the layout {data.layout}"
        raise InputError(f"model.n_layers: found 1; allowed are 2 or more, {why}")
    from_task = {
        **{"d_vocab": data.n_tokens, "d_vocab_out": data.n_tokens},
        **{"masks": [first, *further * (settings.n_layers - 1)], "blind_queries": bool(further)},
        "fixed_tokens": data.fixed_tokens,
    }
    shape = settings.model_dump() | from_task | {"d_mlp": None, "act_fn": None}
    return Transformer(TransformerSettings.parse(shape, "model"), generator)
