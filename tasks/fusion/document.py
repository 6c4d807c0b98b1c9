"""fusion.json and front.parquet: the recommended fusion, why it, and every point beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ctrmodels.fusion import FusionSpec, Judge, score_name
from ctrmodels.metrics import Interval
from tasks.config import TuneFusion
from tasks.fusion.outcome import Tuned

ALTERNATIVES = 4


def front_table(tuned: Tuned, judges: Mapping[str, Judge]) -> list[dict[str, Any]]:
    """One row per point: weights, the tuned metric with standard errors on both windows, and its standing."""
    rows = []
    for i, (point, kept) in enumerate(zip(tuned.points, tuned.front, strict=True)):
        row = {"point_id": i, "function": point.function, "source": point.source}
        row |= {f"weight.{name}": w for name, w in tuned.weights(point).items()}
        for window in ("tuning", "report"):
            judge = judges[window]
            for o, found in zip(tuned.objectives, judge.errors(point), strict=True):
                name = f"{window}.{judge.tuned.name}.{o.name}"
                row |= {name: round(found.mean, 10), f"{name}.se": round(found.error, 10)}
        limited = [o.name for o, f in zip(tuned.objectives, tuned.rule.floors, strict=True) if f is not None]
        slacks = tuned.rule.slacks(point.metrics)
        row |= {f"slack.{name}": round(s, 10) for name, s in zip(limited, slacks, strict=True)}
        rows.append(row | {"feasible": not tuned.rule.shortfall(point.metrics), "dominated": not kept,
                           "recommended": point is tuned.chosen})
    return rows


def describe(tuned: Tuned, spec: FusionSpec, front: list[dict[str, Any]], judges: Mapping[str, Judge],
             values: Mapping[str, Mapping[str, Interval]], gains: Mapping[str, Interval],
             settings: TuneFusion) -> dict[str, Any]:
    """The content of fusion.json: the recommended fusion, the rule that chose it, and what else was near."""
    metric = judges["tuning"].tuned.name
    return {
        "spec": spec.to_json(),
        "rule": rule_in_words(tuned, metric, settings),
        "reason": reason(tuned, metric, values, gains),
        "metric": metric,
        "primary": tuned.primary,
        "floors": {o.name: f for o, f in zip(tuned.objectives, tuned.rule.floors, strict=True) if f is not None},
        "feasible": not tuned.rule.shortfall(tuned.chosen.metrics),
        "windows": {name: {"rows": len(j.table.groups), "lists": j.table.lists} for name, j in judges.items()},
        "recommended": next(row for row in front if row["recommended"]),
        "alternatives": alternatives(tuned, front),
    }


def rule_in_words(tuned: Tuned, metric: str, settings: TuneFusion) -> str:
    """How the recommended point is chosen."""
    rule = f"largest {metric} of {tuned.primary} on the tuning window"
    if any(f is not None for f in tuned.rule.floors):
        rule += (f", among the points whose {metric} of every other objective is at least {settings.floor:.0%} of "
                 "the best that ordering by one score alone reaches there")
    return rule


def reason(tuned: Tuned, metric: str, values: Mapping[str, Mapping[str, Interval]],
           gains: Mapping[str, Interval]) -> str:
    """What was chosen and what it is worth, in a sentence or two."""
    if len(tuned.objectives) == 1:
        return f"There is one objective, so nothing is fused: rows are ordered by {score_name(tuned.objectives[0])}"
    name = f"{metric}.{tuned.primary}"
    gain, found = gains[name], values["recommended"][name]
    weights = ", ".join(f"{o} {w:.3g}" for o, w in tuned.weights(tuned.chosen).items())
    sure = "" if gain.low > 0 or gain.high < 0 else ", no clear difference"
    others = "".join(f", that of {o.name} by {gains[f'{metric}.{o.name}'].mean:+.4f}"
                     for o in tuned.objectives if o.name != tuned.primary)
    text = (f"The scores are fused by {tuned.chosen.function} with the weights {weights}: {metric} of "
            f"{tuned.primary} is {found.mean:.4f} on the report window and differs from that of equal weights by "
            f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]{sure}{others}")
    if tuned.rule.shortfall(tuned.chosen.metrics):
        text += "; no weights reach every floor, these come nearest"
    return text


def alternatives(tuned: Tuned, front: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Other points of the front, evenly spread from the best primary metric to the worst."""
    others = [i for i, kept in enumerate(tuned.front) if kept and not front[i]["recommended"]]
    others.sort(key=lambda i: -tuned.points[i].metrics[tuned.rule.primary])
    picked = np.unique(np.linspace(0, len(others) - 1, min(ALTERNATIVES, len(others))).round().astype(int))
    return [front[others[i]] for i in picked]
