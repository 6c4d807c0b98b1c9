"""fusion.json and front.parquet: the recommended fusion, why it, and every point beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ctrmodels.fusion import Estimate, Judge, score_name
from ctrmodels.fusion.guardrails import Check
from ctrmodels.metrics import Interval
from tasks.config import TuneFusion
from tasks.fusion.decision import Decision
from tasks.fusion.exposure import Exposure
from tasks.fusion.outcome import Tuned
from tasks.fusion.recommendation import Option
from tasks.fusion.segmented import Segmented


def front_table(tuned: Tuned, judges: Mapping[str, Judge], options: Sequence[Option]) -> list[dict[str, Any]]:
    """One row per point: weights, constants, the tuned metric with standard errors on both windows, and its standing.

    ``chosen`` is the point of the rule, ``option`` those that are offered; only these have a ``risk``. The weight of a
    column that the point's function does not have is null.
    """
    risks = {o.index: o.risk for o in options}
    names = dict.fromkeys([*(o.name for o in tuned.objectives), *tuned.columns.values()])
    rows = []
    for i, (point, kept) in enumerate(zip(tuned.points, tuned.front, strict=True)):
        weights = tuned.weights(point)
        row: dict[str, Any] = {"point_id": i, "function": point.function, "source": point.source,
                               "constants": json.dumps(point.constants, sort_keys=True)}
        row |= {f"weight.{name}": weights.get(name) for name in names}
        for window in ("tuning", "report"):
            judge = judges[window]
            for o, found in zip(tuned.objectives, judge.errors(point), strict=True):
                name = f"{window}.{judge.tuned.name}.{o.name}"
                row |= {name: round(found.mean, 10), f"{name}.se": round(found.error, 10)}
        limited = [o.name for o, f in zip(tuned.objectives, tuned.rule.floors, strict=True) if f is not None]
        slacks = tuned.rule.slacks(point.metrics)
        row |= {f"slack.{name}": round(s, 10) for name, s in zip(limited, slacks, strict=True)}
        rows.append(row | {"feasible": not tuned.rule.shortfall(point.metrics), "dominated": not kept,
                           "chosen": point is tuned.chosen, "option": i in risks, "risk": risks.get(i, math.nan)})
    return rows


def describe(decision: Decision, values: Mapping[str, Mapping[str, Interval]], gains: Mapping[str, Interval],
             settings: TuneFusion) -> dict[str, Any]:
    """The content of fusion.json: the fusion to serve, the rule that chose it, and what else was near."""
    tuned = decision.tuned
    verdict = decision.chosen.verdict
    return {
        "spec": decision.served.to_json(),
        "withheld": decision.withheld,
        "reason": reason(decision, values, gains),
        "rule": rule_in_words(tuned, decision.metric, settings),
        "metric": decision.metric,
        "primary": tuned.primary,
        "floors": {o.name: f for o, f in zip(tuned.objectives, tuned.rule.floors, strict=True) if f is not None},
        "feasible": not tuned.rule.shortfall(tuned.chosen.metrics),
        "windows": {name: {"rows": len(j.table.groups), "lists": j.table.lists}
                    for name, j in decision.judges.items()},
        "proposal": decision.proposal.to_json(),
        "incumbent": decision.incumbent.name,
        "guardrails": [_check(c) for c in verdict.checks],
        "broken": [c.name for c in verdict.broken],
        "unjudged": list(verdict.unjudged),
        "options": [_option(o, tuned) for o in decision.options],
        "off_policy": _exposure(decision.exposure),
        "segments": None if decision.segmented is None else _segments(decision.segmented),
    }


def rule_in_words(tuned: Tuned, metric: str, settings: TuneFusion) -> str:
    """How the recommended point is chosen."""
    rule = f"largest {metric} of {tuned.primary} on the tuning window"
    if any(f is not None for f in tuned.rule.floors):
        rule += (f", among the points whose {metric} of every other objective is at least {settings.floor:.0%} of "
                 "the best that ordering by one score alone reaches there")
    return rule


def reason(decision: Decision, values: Mapping[str, Mapping[str, Interval]], gains: Mapping[str, Interval]) -> str:
    """What was chosen and what it is worth, in a sentence or two."""
    tuned, metric = decision.tuned, decision.metric
    if len(tuned.chosen.weights) == 1:
        return (f"There is one objective, so nothing is fused: rows are ordered by {score_name(tuned.objectives[0])}"
                f"{withheld(decision)}")
    gain, found = gains[decision.name], values["recommended"][decision.name]
    sure = "" if gain.low > 0 or gain.high < 0 else ", no clear difference"
    others = "".join(f", that of {o.name} by {gains[f'{metric}.{o.name}'].mean:+.4f}"
                     for o in tuned.objectives if o.name != tuned.primary)
    text = (f"The scores are fused by {tuned.chosen.function} with the weights {tuned.numbers(tuned.chosen)}: "
            f"{metric} of {tuned.primary} is {found.mean:.4f} on the report window and differs from that of equal "
            f"weights by {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]{sure}{others}")
    if tuned.rule.shortfall(tuned.chosen.metrics):
        text += "; no weights reach every floor, these come nearest"
    return text + withheld(decision)


def withheld(decision: Decision) -> str:
    """Which guard-rails are broken, as the end of a sentence; nothing where all hold."""
    if not decision.withheld:
        return ""
    broken = "; ".join(map(str, decision.chosen.verdict.broken))
    return f". The recommendation is withheld, {decision.incumbent.name} stays in service: {broken}"


def _option(option: Option, tuned: Tuned) -> dict[str, Any]:
    return {"point_id": option.index, "chosen": option.chosen, "function": option.point.function,
            "constants": dict(option.point.constants), "weights": tuned.weights(option.point), "risk": option.risk,
            "change": {name: interval(i) for name, i in option.changes.items()},
            "broken": [c.name for c in option.verdict.broken]}


def _check(check: Check) -> dict[str, Any]:
    return {"name": check.name, "value": finite(check.value), "low": finite(check.low), "high": finite(check.high),
            "holds": check.holds}


def _exposure(exposure: Exposure) -> dict[str, Any]:
    return {"rows": exposure.rows, "refused": exposure.refused, "estimates": [
        {"order": line.order, "objective": line.objective, "method": line.method, "refused": line.refused,
         **({} if line.estimate is None else _estimate(line.estimate))} for line in exposure.lines]}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": interval(estimate.value), "gain": interval(estimate.gain), "level": estimate.level,
            "effective": round(estimate.effective, 6), "mean_ratio": round(estimate.mean_ratio, 10),
            "clipped": round(estimate.clipped, 10)}


def _segments(found: Segmented) -> dict[str, Any]:
    return {"field": found.field, "function": found.function.to_json(), **found.weights.to_json(),
            "lists": dict(found.lists), "gain": {name: interval(i) for name, i in found.gains.items()}}


def interval(value: Interval) -> dict[str, float | None]:
    """An interval as plain data."""
    return {"mean": finite(value.mean), "low": finite(value.low), "high": finite(value.high)}


def finite(value: float) -> float | None:
    """A number to ten digits; ``None`` for NaN and infinity, which JSON has not."""
    return round(float(value), 10) if math.isfinite(value) else None
