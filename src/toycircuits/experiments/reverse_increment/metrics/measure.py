"""Does attention mirror the string, and is the answer's embedding in the residual stream?

Everything is taken over the held-out strings, at the positions that predict the answer. Beside each
number stands its control: the network before training, other diagonals, other symbols.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from toycircuits.core.config import InputError, Settings
from toycircuits.core.transformer import Transformer
from toycircuits.experiments.reverse_increment.task import DataSettings, evaluate, part

Tables = dict[str, pd.DataFrame]
Activations = Mapping[str, Tensor]
KEPT = ("attn.hook_pattern", "hook_resid_post", "hook_mlp_out")
EVERYTHING = "all held-out strings"


class MeasureSettings(Settings):
    """What to measure.

    Attributes:
        n_samples: held-out strings that are shown by themselves, evenly spaced in their order.
    """

    n_samples: int = Field(ge=1, le=20)

    def check(self, data: DataSettings, train: Any) -> None:
        """Raise an `InputError` for more samples than there are held-out strings."""
        if self.n_samples > (holdout := data.n_strings - data.n_train):
            allowed = f"at most the held-out strings, {holdout}"
            raise InputError(f"measure.n_samples: found {self.n_samples}; allowed: {allowed}")


def training_start(
    data: Mapping[str, Tensor], task: DataSettings, train: Any = None, model: Any = None
) -> pd.DataFrame:
    """The strings of the run's split: no model has a part in it.

    One row a number. `item`: strings, training_strings, held_out_strings; and held_out_x0 and so
    on, the symbols that stand at this place of any held-out string.

    >>> data = {"inputs": torch.tensor([[2, 0, 0, 1], [2, 0, 1, 0], [2, 1, 0, 1], [2, 1, 1, 0]])}
    >>> data |= {"train": torch.tensor([0, 1]), "holdout": torch.tensor([2, 3])}
    >>> task = DataSettings(n_symbols=2, length=2, n_train=2, n_sampled=1, seed=0)
    >>> table = training_start(data, task)
    >>> table["item"].tolist()[2:], table["value"].tolist()
    (['held_out_strings', 'held_out_x0', 'held_out_x1', 'held_out_x1'], [4, 2, 2, 1, 0, 1])
    """
    held_out = data["inputs"][data["holdout"], 1 : task.length + 1]
    items = {
        "strings": [len(data["inputs"])],
        "training_strings": [len(data["train"])],
        "held_out_strings": [len(held_out)],
    }
    for place, symbols in enumerate(held_out.unbind(1)):
        items[f"held_out_x{place}"] = symbols.unique().tolist()
    return pd.DataFrame(
        {"item": item, "index": index, "value": value}
        for item, found in items.items()
        for index, value in enumerate(found)
    )


def activations(model: Transformer, inputs: Int[Tensor, "string pos"]) -> dict[str, Tensor]:
    """Patterns, residual streams after each layer, MLP outputs and logits where answers are read.

    Of every tensor the rows of the positions that predict the answer; of a pattern, its queries.
    """
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith(KEPT))
    rows = slice(inputs.shape[1] // 2, None)
    cut = {name: x[:, :, rows] if "pattern" in name else x[:, rows] for name, x in cache.items()}
    return {"logits": logits[:, rows], **cut}


def mirror_weights(
    pattern: Float[Tensor, "string head query key"], shift: int
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """How much, and how often the most, output i attends to the symbol that it needs.

    That is key n - i for output i of n: the anti-diagonal. With a `shift` the diagonal that many
    keys after it is taken instead, as far as it lies within the string.

    Returns:
        mean weight, and share of the queries whose largest weight (over all keys) stands there.

    >>> to_bos_x0_x1_y0 = [[0.0, 0.1, 0.9, 0.0], [0.0, 0.7, 0.1, 0.2]]
    >>> pattern = torch.tensor([[to_bos_x0_x1_y0]])
    >>> mirror_weights(pattern, 0)
    (tensor([0.8000]), tensor([1.]))
    >>> mirror_weights(pattern, 1)
    (tensor([0.1000]), tensor([0.]))
    """
    n = pattern.shape[2]
    queries = torch.arange(n, device=pattern.device)
    keys = n - queries + shift
    inside = (keys >= 1) & (keys <= n)
    queries, keys = queries[inside], keys[inside]
    weight = pattern[:, :, queries, keys].mean((0, 2))
    return weight, (pattern.argmax(-1)[:, :, queries] == keys).to(pattern).mean((0, 2))


def mirror_table(acts: Activations, shifts: Iterable[int]) -> pd.DataFrame:
    """`mirror_weights` of each layer and head at each shift, and of attention without preference.

    For the latter the share is that of a largest weight which stands anywhere.
    """
    rows: list[dict[str, float]] = []
    patterns = [x.double() for name, x in acts.items() if "pattern" in name]
    n, n_keys = patterns[0].shape[2:]
    seen = torch.arange(n_keys) <= torch.arange(n_keys - n, n_keys).unsqueeze(1)
    uniform = (seen / seen.sum(1, keepdim=True)).double()[None, None]
    for shift in shifts:
        chance = mirror_weights(uniform, shift)[0].item()
        for layer, pattern in enumerate(patterns):
            for head, (weight, share) in enumerate(
                zip(*mirror_weights(pattern, shift), strict=True)
            ):
                cell = {"layer": layer, "head": head, "shift": shift, "weight": weight.item()}
                rows.append({**cell, "argmax_share": share.item(), "uniform": chance})
    return pd.DataFrame(rows)


def cosines(
    resid: Float[Tensor, "string symbol d_model"], embeddings: Float[Tensor, "token d_model"]
) -> Float[Tensor, "string symbol token"]:
    """Cosine similarity of each residual vector with each embedding."""
    return F.cosine_similarity(resid.unsqueeze(2), embeddings, dim=-1)


def confusion(
    read: Int[Tensor, "string symbol"], targets: Int[Tensor, "string symbol"], n_symbols: int
) -> Float[np.ndarray, "target read"]:
    """Share of each symbol's occurrences in the answers that is read as each symbol.

    What is read as BOS (`n_symbols`) is in no column; a symbol that never occurs has a row of NaN.

    >>> confusion(torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 0, 1]]), 2)
    array([[0.5, 0.5],
           [0. , 0.5]])
    """
    rows, columns = F.one_hot(targets, n_symbols), F.one_hot(read, n_symbols + 1)
    counts = rows.flatten(0, 1).double().T @ columns.flatten(0, 1).double()
    share = counts / torch.where(counts.sum(1) > 0, counts.sum(1), torch.nan).unsqueeze(1)
    return share[:, :n_symbols].cpu().numpy()


def matrix_rows(values: np.ndarray, names: tuple[str, ...]) -> list[dict[str, float]]:
    """One row a cell: its indices under `names`, and the last of these for the value.

    >>> matrix_rows(np.array([[1.5, 2.0]]), ("i", "j", "value"))
    [{'i': 0, 'j': 0, 'value': 1.5}, {'i': 0, 'j': 1, 'value': 2.0}]
    """
    *axes, name = names
    return [
        dict(zip(axes, index, strict=True)) | {name: float(value)}
        for index, value in np.ndenumerate(values)
    ]


def last_resid(acts: Activations) -> Tensor:
    """The residual stream after the last layer."""
    return [x for name, x in acts.items() if name.endswith("resid_post")][-1]


def readings(
    models: Mapping[str, Transformer], acts: Mapping[str, Activations], n_symbols: int
) -> dict[str, Int[Tensor, "string symbol"]]:
    """What the model predicts, and the symbols whose embeddings its residual stream resembles.

    Args:
        models, acts: "trained" and "untrained" -> model, and its activations.
    """
    read = {"prediction": acts["trained"]["logits"].argmax(-1)}
    for name, model in models.items():
        embeddings = model.get_parameter("embed.W_E").detach()[:n_symbols]
        read[f"similarity, {name}"] = cosines(last_resid(acts[name]), embeddings).argmax(-1)
    return read


def sample_tables(
    model: Transformer, acts: Activations, data: Mapping[str, Tensor], n_samples: int
) -> Tables:
    """Patterns (over the string's positions; of all strings, too), cosines and layer-0 MLP outputs.

    Column `string`: the symbols, or `EVERYTHING` for the mean; `symbol`: index in the answer.
    """
    n, n_symbols = data["targets"].shape[1], model.settings.d_vocab - 1
    embeddings = model.get_parameter("embed.W_E").detach()[:n_symbols]
    parts: dict[str, list[dict[str, float | str]]] = {"patterns": [], "similarity": [], "mlp": []}
    rows = torch.arange(n_samples) * len(data["targets"]) // n_samples
    # Spaces, so that a table's reader does not take a string for a number.
    names = [" ".join(map(str, data["inputs"][row, 1 : n + 1].tolist())) for row in rows]
    near = cosines(last_resid(acts), embeddings)
    for row, name in zip(rows, names, strict=True):
        cells = matrix_rows(near[row].cpu().numpy(), ("symbol", "token", "cosine"))
        answer, read = data["targets"][row].tolist(), near[row].argmax(-1).tolist()
        parts["similarity"] += [
            {"string": name, "target": answer[i], "read": read[i], **cell}
            for cell in cells
            for i in [int(cell["symbol"])]
        ]
        mlp = acts["blocks.0.hook_mlp_out"][row].cpu().numpy()
        parts["mlp"] += [
            {"string": name, **c} for c in matrix_rows(mlp, ("symbol", "dimension", "value"))
        ]
    for layer in range(model.settings.n_layers):
        pattern = acts[f"blocks.{layer}.attn.hook_pattern"].double().cpu()[..., 1 : n + 1]
        shown = {EVERYTHING: pattern.mean(0)} | dict(zip(names, pattern[rows], strict=True))
        for name, weights in shown.items():
            cells = matrix_rows(weights.numpy(), ("head", "symbol", "key", "weight"))
            parts["patterns"] += [{"string": name, "layer": layer, **c} for c in cells]
    return {name: pd.DataFrame(rows) for name, rows in parts.items()}


def summary(
    mirror: pd.DataFrame, read: Mapping[str, Tensor], targets: Tensor, n_symbols: int
) -> dict[str, float]:
    """The numbers that sum up mirrored attention, and how often each reading is the answer.

    `..._plus_s`: how often it is the answer plus s, modulo the alphabet.
    """
    metrics: dict[str, float] = {}
    for row in mirror[mirror["shift"] == 0].to_dict("records"):
        name = f"layer{row['layer']}_head{row['head']}_{row['case']}"
        metrics[f"mirror_weight_{name}"] = row["weight"]
        metrics[f"mirror_share_{name}"] = row["argmax_share"]
    for case, symbols in read.items():
        name = case.replace(", ", "_")
        for shift in range(n_symbols):
            hits = (symbols == (targets + shift) % n_symbols).double().mean().item()
            metrics[f"{name}_is_answer" + (f"_plus_{shift}" if shift else "")] = hits
    return metrics


def measure(
    model: Transformer,
    states: Iterable[tuple[int, Mapping[str, Tensor]]],
    data: Mapping[str, Tensor],
    task: DataSettings,
    settings: MeasureSettings,
) -> tuple[Tables, dict[str, float]]:
    """All tables of one trained model, and the numbers that sum it up.

    The untrained network is the first checkpoint.
    """
    holdout = part(data, "holdout")
    models = {"trained": model, "untrained": copy.deepcopy(model)}
    at_step = copy.deepcopy(model)
    course: list[pd.DataFrame] = []
    for step, state in states:
        at_step.load_state_dict(dict(state))
        if not course:
            models["untrained"].load_state_dict(dict(state))
        course.append(mirror_table(activations(at_step, holdout["inputs"]), [0]).assign(step=step))
    acts = {name: activations(one, holdout["inputs"]) for name, one in models.items()}
    shifts = range(1 - task.length, task.length)
    mirror = pd.concat([mirror_table(own, shifts).assign(case=name) for name, own in acts.items()])
    read = readings(models, acts, task.n_symbols)
    due = F.one_hot(holdout["targets"], task.n_symbols).double().mean((0, 1)).tolist()
    confusions = [
        {"case": case, "due": due[int(cell["target"])], **cell}
        for case, symbols in read.items()
        for cell in matrix_rows(
            confusion(symbols, holdout["targets"], task.n_symbols), ("target", "read", "share")
        )
    ]
    tables = sample_tables(model, acts["trained"], holdout, settings.n_samples)
    tables |= {"mirror": mirror, "mirror_course": pd.concat(course)}
    tables["confusion"] = pd.DataFrame(confusions)
    with torch.no_grad():
        metrics = evaluate(model, data)
    return tables, metrics | summary(mirror, read, holdout["targets"], task.n_symbols)
