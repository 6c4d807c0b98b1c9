"""The one rule by which a stage chooses among candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctrmodels.metrics import HIGHER_IS_BETTER
from ctrmodels.search.run import Candidate


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, and why, in a sentence."""

    candidate: Candidate
    reason: str
    rule: str


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def choose(candidates: Sequence[Candidate], metric: str, budget: float) -> Choice:
    """Best mean ``metric`` on ``valid`` within the budget; ties go to the cheapest.

    A candidate is tied with the best if its mean lies within the best one's standard deviation over the
    seeds. Cheaper means fewer stored parameters, then fewer FLOPs. Random controls and baselines are never
    chosen: they stand on the leaderboard to show what the search is worth.

    Args:
        candidates: of all methods, with a control, the first of which the budget is a share of.
        metric: ``auc`` or ``logloss``.
        budget: largest share of the control's stored parameters.

    Raises:
        ValueError: there is no control among the candidates, or none fits the budget.
    """
    controls = [c for c in candidates if c.kind == "control"]
    if not controls:
        raise ValueError("no control among the candidates")
    dense = float(np.mean([k.parameters for k in controls[0].costs]))
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0

    def parameters(c: Candidate) -> float:
        return float(np.mean([k.parameters for k in c.costs]))

    allowed = [c for c in candidates if c.kind not in ("random", "baseline") and parameters(c) <= budget * dense]
    if not allowed:
        smallest = min((c for c in candidates if c.kind not in ("random", "baseline")), key=parameters)
        raise ValueError(f"no candidate has at most {budget:g} of the control's {dense:.0f} parameters; the smallest, "
                         f"{smallest.name}, has {parameters(smallest) / dense:.3f} of them")
    best = max(allowed, key=lambda c: sign * mean_sd(c.valid[metric])[0])
    top, spread = mean_sd(best.valid[metric])
    tied = [c for c in allowed if sign * (top - mean_sd(c.valid[metric])[0]) <= spread]
    chosen = min(tied, key=lambda c: (parameters(c), float(np.mean([k.flops for k in c.costs])), c.name))
    mean = mean_sd(chosen.valid[metric])[0]
    share = parameters(chosen) / dense
    if chosen is best:
        reason = f"{chosen.name} has the best valid {metric}, {mean:.4f}"
    else:
        reason = (f"{chosen.name} (valid {metric} {mean:.4f}) is within one standard deviation ({spread:.4f}) of the "
                  f"best, {best.name} ({top:.4f}), and is cheaper")
    return Choice(chosen, f"{reason}; it stores {share:.1%} of the unsearched model's parameters",
                  f"best mean valid {metric} over the seeds among candidates with at most {budget:.0%} of the "
                  "control's parameters; ties within the best one's standard deviation go to fewer parameters")


def leaderboard(candidates: Sequence[Candidate], metric: str, choice: Choice) -> dict[str, Any]:
    """Every candidate as a row, best first, for the report."""
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    rows = []
    for c in sorted(candidates, key=lambda c: -sign * mean_sd(c.valid[metric])[0]):
        mean, sd = mean_sd(c.valid[metric])
        row = {"candidate": c.name, "kind": c.kind, "valid": mean, "valid_sd": sd, "seeds": list(c.seeds),
               "chosen": c is choice.candidate, "search_steps": c.steps, "retrain_steps": c.retrain_steps,
               "interactions": c.interactions}
        row |= {name: float(np.mean([getattr(k, name) for k in c.costs]))
                for name in ("parameters", "parameters_embedding", "flops", "bytes")}
        row |= {f"valid_{name}": mean_sd(v)[0] for name, v in c.valid.items()}
        rows.append(row)
    return {"metric": metric, "rule": choice.rule, "reason": choice.reason, "rows": rows}
