"""Is the answer's embedding in the residual stream, and what does the model predict?

Controls: the network before training, and other symbols than the answer's.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toycircuits.core.transformer import Transformer
from toycircuits.experiments.reverse_increment.metrics.activations import Activations, last_resid


def symbol_embeddings(model: Transformer) -> Float[Tensor, "symbol d_model"]:
    """Embeddings of the task's symbols; the last token, BOS, is left out."""
    return model.get_parameter("embed.W_E").detach()[:-1]


def cosines(
    resid: Float[Tensor, "string symbol d_model"], embeddings: Float[Tensor, "token d_model"]
) -> Float[Tensor, "string symbol token"]:
    """Cosine similarity of each residual vector with each embedding."""
    return F.cosine_similarity(resid.unsqueeze(2), embeddings, dim=-1)


def readings(
    models: Mapping[str, Transformer], acts: Mapping[str, Activations]
) -> dict[str, Int[Tensor, "string symbol"]]:
    """What the model predicts, and the symbols whose embeddings its residual stream resembles.

    Args:
        models, acts: "trained" and "untrained" -> model, and its activations.
    """
    read = {"prediction": acts["trained"]["logits"].argmax(-1)}
    for name, model in models.items():
        similarity = cosines(last_resid(acts[name]), symbol_embeddings(model))
        read[f"similarity, {name}"] = similarity.argmax(-1)
    return read


def confusion(
    read: Int[Tensor, "string symbol"], targets: Int[Tensor, "string symbol"], n_symbols: int
) -> Float[np.ndarray, "target read"]:
    """Share of each symbol's occurrences in the answers that is read as each symbol.

    Readings of BOS (`n_symbols`) are in no column. A symbol that never occurs has a row of NaN.

    >>> confusion(torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 0, 1]]), 2)
    array([[0.5, 0.5],
           [0. , 0.5]])
    """
    rows, columns = F.one_hot(targets, n_symbols), F.one_hot(read, n_symbols + 1)
    counts = rows.flatten(0, 1).double().T @ columns.flatten(0, 1).double()
    share = counts / torch.where(counts.sum(1) > 0, counts.sum(1), torch.nan).unsqueeze(1)
    return share[:, :n_symbols].cpu().numpy()


def confusion_table(
    read: Mapping[str, Int[Tensor, "string symbol"]],
    targets: Int[Tensor, "string symbol"],
    n_symbols: int,
) -> pd.DataFrame:
    """`confusion` of each reading, one row per cell.

    Column `due` is the share of the target symbol in the answers.
    """
    due = F.one_hot(targets, n_symbols).double().mean((0, 1)).tolist()
    rows = []
    for case, symbols in read.items():
        shares = confusion(symbols, targets, n_symbols)
        for cell in matrix_rows(shares, ("target", "read", "share")):
            rows.append({"case": case, "due": due[int(cell["target"])], **cell})
    return pd.DataFrame(rows)


def matrix_rows(values: np.ndarray, names: tuple[str, ...]) -> list[dict[str, float]]:
    """One row per cell: its indices and, last, its value, under these names.

    >>> matrix_rows(np.array([[1.5, 2.0]]), ("i", "j", "value"))
    [{'i': 0, 'j': 0, 'value': 1.5}, {'i': 0, 'j': 1, 'value': 2.0}]
    """
    *axes, name = names
    return [
        dict(zip(axes, index, strict=True)) | {name: float(value)}
        for index, value in np.ndenumerate(values)
    ]
