"""Which claims the tables of one model decide, and the verdicts."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from toycircuits.claims.card import Claim, Measured
from toycircuits.claims.lookup import NoRowError, values
from toycircuits.claims.verdict import judge
from toycircuits.foreign.subject import Tables, is_a_step

# Relative difference of values that do not depend on the weights. The numbers of float32 are 1e-7
# apart, and a change of weights changes far more.
SAME = 1e-6


def judge_one(
    claims: Iterable[Claim], scale: str, tables: Tables, untrained: Tables
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The verdicts that `tables` decide; and reason -> the claims that they do not decide."""
    verdicts: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}
    for claim in claims:
        about_one = _without_seed(claim)
        if reason := _why_undecided(about_one, scale, tables, untrained):
            left_out.setdefault(reason, []).append(claim.id)
            continue
        verdict = judge(about_one, tables, scale)
        control = judge(about_one, untrained, scale)
        # `why` is about the models of the run.
        verdicts.append(verdict | {"why": "", "untrained": control["outcome"]})
    return pd.DataFrame(verdicts), left_out


def _without_seed(claim: Claim) -> Claim:
    """`claim` about any model: a published model with a known seed is a model, too."""
    where = {name: value for name, value in claim.measured.where.items() if name != "seed"}
    measured = claim.measured.model_copy(update={"where": where})
    return claim.model_copy(update={"measured": measured})


def _why_undecided(claim: Claim, scale: str, tables: Tables, untrained: Tables) -> str:
    """Why `tables` do not decide `claim`; the empty text if they do."""
    measured = claim.measured
    if scale not in claim.scales:
        return "they are about another scale"
    if measured.table.startswith("summary/"):
        return "they are about all runs together"
    if measured.table not in tables or _is_about_steps(measured, tables[measured.table]):
        return "they are about the training"
    try:
        found, control = values(measured, tables), values(measured, untrained)
    except NoRowError:
        return "they are about other runs, variants or models"
    if _same(found, control):
        return "they do not depend on the weights"
    return ""


def _same(found: "pd.Series[Any]", control: "pd.Series[Any]") -> bool:
    """Whether both are the same values, up to what a quotient of rounded values differs."""
    if not all(map(pd.api.types.is_numeric_dtype, (found, control))):
        return bool(found.tolist() == control.tolist())
    return np.allclose(found.astype(float), control.astype(float), rtol=SAME, atol=0.0)


def _is_about_steps(measured: Measured, table: pd.DataFrame) -> bool:
    """Whether a step of training, or a value at another one than the last, is measured."""
    if "step" in table and "step" not in measured.where:
        return True  # rows of all steps match, those of the untrained network among them
    rows = [measured.where, measured.minus or {}, measured.over or {}]
    metrics = [row.get("metric", "") for row in rows]
    steps = [row["step"] for row in rows if "step" in row]
    if any(is_a_step(str(metric)) for metric in metrics) or "step" in measured.value:
        return True
    return any(step != "last" for step in steps)
