"""Every experiment's training against PyTorch's own backward pass and optimizer.

A gradient may come out with transposed strides; an optimizer that ignores this updates the wrong
weights.
"""

import copy
from pathlib import Path

import pytest
import torch

from toycircuits.core.config import find_run, read_params
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.training import Objective, train

PARAMS = read_params(Path(__file__).resolve().parents[2] / "params.yaml") | {"scale": "quick"}
STEPS = 8
# One run of each kind of model; variants of a run differ in what is frozen or how it starts.
RUNS = [
    "modular_subtraction",
    "list_copy_10",
    "list_copy_100",
    "list_copy_100_2l_ln_bias",
    "reverse_increment_random",
    "linear_regression_h2",
    "linear_regression_stack",
]


@pytest.mark.parametrize(
    ("run_name", "variant"),
    [(name, variant) for name in RUNS for variant in find_run(PARAMS, name).variants],
)
def test_a_training_is_what_pytorch_does(tmp_path: Path, run_name: str, variant: str) -> None:
    run = find_run(PARAMS, run_name)
    task, architecture = load_task(run.entry.slice), load_model(run.entry.slice)
    data_settings = run.section("data", task.DataSettings)
    if "n_validation" in type(data_settings).model_fields:
        data_settings = data_settings.model_copy(update={"n_validation": 16})
    changes = {"unit": "step", "length": STEPS, "log_every": 1, "checkpoint_every": STEPS}
    settings = run.section("train", task.TrainSettings)
    settings = settings.model_copy(update=changes | {"schedule": None, "stop": None})
    shape = run.section("model", architecture.ModelSettings, variant)
    data = settings.select(task.generate(data_settings, torch.Generator().manual_seed(0)))

    def stream() -> object:
        return task.batches(data, data_settings, settings, torch.Generator().manual_seed(2))

    model = architecture.build(shape, data_settings, torch.Generator().manual_seed(1))
    by_hand = copy.deepcopy(model)
    objective = Objective(stream(), task.loss, lambda model: {})  # type: ignore[arg-type]
    rows = train(model, objective, settings, tmp_path, "key", {})

    trainable = [weight for weight in by_hand.parameters() if weight.requires_grad]
    kind = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[settings.optimizer]
    options = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    optimizer = kind(trainable, fused=True, **options)
    batches, losses = stream(), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = task.loss(by_hand, batches.next())  # type: ignore[attr-defined]
        losses.append(loss.item())
        loss.backward()
        if settings.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trainable, settings.clip_grad_norm)
        optimizer.step()
    assert [row["train_loss"] for row in rows[:-1]] == losses
    for (name, weight), other in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(weight, other), name
