"""Tables of a few held-out strings: attention, cosines with the embeddings, MLP outputs."""

from collections.abc import Mapping

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.reverse_increment.metrics.activations import Activations, last_resid
from toycircuits.experiments.reverse_increment.metrics.readings import (
    cosines,
    matrix_rows,
    symbol_embeddings,
)

EVERYTHING = "all held-out strings"
Samples = Mapping[str, int]  # string -> its row among the held-out strings


def sample_tables(
    model: Transformer, acts: Activations, data: Mapping[str, Tensor], n_samples: int
) -> dict[str, pd.DataFrame]:
    """Tables `patterns`, `similarity` (cosines) and `mlp` (outputs of layer 0) of the samples.

    Column `string` holds the symbols, and `symbol` an index in the answer. `patterns` also has
    rows for the mean over all strings, named `EVERYTHING`.

    Args:
        data: inputs and targets of the held-out strings.
    """
    samples = choose_samples(data["inputs"], n_samples)
    return {
        "patterns": pattern_table(acts, samples),
        "similarity": similarity_table(model, acts, data["targets"], samples),
        "mlp": mlp_table(acts, samples),
    }


def choose_samples(inputs: Int[Tensor, "string pos"], n_samples: int) -> dict[str, int]:
    """The samples, evenly spaced in the order of the strings.

    Spaces separate the symbols, so that a reader of the table does not take a string for a number.

    >>> import torch
    >>> choose_samples(torch.tensor([[2, 0, 1, 0], [2, 1, 0, 1], [2, 1, 1, 0]]), 2)
    {'0 1': 0, '1 0': 1}
    """
    length = inputs.shape[1] // 2
    rows = [number * len(inputs) // n_samples for number in range(n_samples)]
    return {" ".join(map(str, inputs[row, 1 : length + 1].tolist())): row for row in rows}


def pattern_table(acts: Activations, samples: Samples) -> pd.DataFrame:
    """Attention from the answer's positions to the string's, one row per cell."""
    rows: list[dict[str, float | str]] = []
    for layer, pattern in enumerate(x for name, x in acts.items() if "pattern" in name):
        to_string = pattern.double().cpu()[..., 1 : pattern.shape[2] + 1]
        shown = {EVERYTHING: to_string.mean(0)}
        shown |= {string: to_string[row] for string, row in samples.items()}
        for string, weights in shown.items():
            cells = matrix_rows(weights.numpy(), ("head", "symbol", "key", "weight"))
            rows += [{"string": string, "layer": layer, **cell} for cell in cells]
    return pd.DataFrame(rows)


def similarity_table(
    model: Transformer,
    acts: Activations,
    targets: Int[Tensor, "string symbol"],
    samples: Samples,
) -> pd.DataFrame:
    """Cosine of the last residual stream with each symbol's embedding, one row per cell.

    `target` is the symbol due, and `read` the symbol of the largest cosine.
    """
    similarity = cosines(last_resid(acts), symbol_embeddings(model))
    rows: list[dict[str, float | str]] = []
    for string, row in samples.items():
        answer, read = targets[row].tolist(), similarity[row].argmax(-1).tolist()
        for cell in matrix_rows(similarity[row].cpu().numpy(), ("symbol", "token", "cosine")):
            i = int(cell["symbol"])
            rows.append({"string": string, "target": answer[i], "read": read[i], **cell})
    return pd.DataFrame(rows)


def mlp_table(acts: Activations, samples: Samples) -> pd.DataFrame:
    """Output of the layer-0 MLP, one row per cell."""
    rows: list[dict[str, float | str]] = []
    for string, row in samples.items():
        output = acts["blocks.0.hook_mlp_out"][row].cpu().numpy()
        cells = matrix_rows(output, ("symbol", "dimension", "value"))
        rows += [{"string": string, **cell} for cell in cells]
    return pd.DataFrame(rows)
