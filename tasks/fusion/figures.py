"""The figures of the stage tune_fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ctrmodels.data.schema import Objective
from ctrmodels.fusion import FusionSpec, Judge, Point, ScoreTable, score_name
from ctrmodels.metrics import Interval, reliability
from tasks.fusion.decision import FACTORS, Decision, Orders
from tasks.fusion.exposure import Exposure
from tasks.fusion.outcome import Tuned
from tasks.fusion.segmented import Segmented
from tasks.runtime.figure import Axis, Figure, Series

HALF_WIDTH = 1.96  # standard errors of a 95 % interval


def front(tuned: Tuned, judge: Judge, other: int) -> Figure:
    """Every tried point by its metric of the primary objective and of the objective with index ``other``.

    Args:
        tuned: the points.
        judge: of the tuning window.
        other: see above.
    """
    x, objectives, points, metric = tuned.rule.primary, tuned.objectives, tuned.points, judge.tuned.name

    def series(name: str, members: Sequence[Point], labels: Sequence[str] | None = None, wide: bool = False) -> Series:
        error = [HALF_WIDTH * judge.errors(p)[other].error for p in members] if wide else None
        return Series(name, [p.metrics[x] for p in members], [p.metrics[other] for p in members], error, labels)

    tried = [(p, kept) for p, kept in zip(points, tuned.front, strict=True) if p.source not in ("equal", "corner")]
    functions = list(dict.fromkeys(p.function for p in points))
    equal = [p for p in points if p.source == "equal"]
    shown = [series("dominated", [p for p, kept in tried if not kept]),
             *(series(f"front, {f}", [p for p, kept in tried if kept and p.function == f], wide=True)
               for f in functions),
             series("one score alone", points[:len(objectives)], [f"only {o.name}" for o in objectives]),
             series("equal weights", equal, [f"equal, {p.function}" for p in equal]),
             series("chosen", [tuned.chosen], ["chosen"], wide=True)]
    return Figure(
        id=f"pareto_front_{other + 1}" if len(objectives) > 2 else "pareto_front",
        title=f"{objectives[x].name} against {objectives[other].name}", kind="scatter",
        x=Axis(f"{metric} of {objectives[x].name}, tuning window"),
        y=Axis(f"{metric} of {objectives[other].name}, tuning window"), series=[s for s in shown if s.x],
        caption="Each point is one setting of the weights. Whiskers are 95 % intervals from resampled lists. On the "
                "front nothing can be gained for one objective without a loss for another"
                + ("." if len(objectives) == 2 else ", one not shown here included."))


def weights(tuned: Tuned) -> Figure:
    """The weights that the rule chooses for each function."""
    bests = {p.function: tuned.weights(p) for p in tuned.best_by_function}
    beside = "" if not tuned.columns else " The bar of a length or price is its exponent."
    return Figure(
        id="weights", title="Weights", kind="bar", x=Axis("score"), y=Axis("weight of the normalised score"),
        series=[Series(function, list(found), list(found.values())) for function, found in bests.items()],
        caption="The best weights of each function by the rule. A score is normalised to a mean of 1, so "
                f"equal bars mean equal influence.{beside}")


def objectives_by_order(orders: Mapping[str, Mapping[str, Interval]], metric: str,
                        objectives: Sequence[Objective], window: str) -> Figure:
    """The tuned metric of every objective under the compared orders."""
    names = [o.name for o in objectives]
    return Figure(
        id=f"objectives_{window}", title=f"What each order is worth, {window}", kind="bar", x=Axis("objective"),
        y=Axis(metric),
        series=[Series(order, names, [found[f"{metric}.{n}"].mean for n in names],
                       error=[HALF_WIDTH * found[f"{metric}.{n}"].error for n in names])
                for order, found in orders.items()],
        caption="Whiskers are 95 % intervals from resampled lists. All orders are judged on the same lists, so "
                "differences are surer than the whiskers suggest: see the gain.")


def gains(found: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """What the recommended weights gain over equal ones."""
    lines = [[window, *name.split(".", 1), g.mean, f"[{g.low:+.4f}, {g.high:+.4f}]"]
             for window, values in found.items() for name, g in values.items()]
    return Figure(
        id="gain", title="Gain over equal weights", kind="table", values=lines,
        columns=["rows", "metric", "objective", "gain", "95 % interval"],
        caption="Recommended minus equal weights of the same function, paired by list.")


def calibration(table: ScoreTable, spec: FusionSpec) -> Figure | None:
    """Observed rates against predictions, raw and calibrated, on rows that did not fit the calibration."""
    series, top = [], 0.0
    for i, (objective, score) in enumerate(zip(table.objectives, spec.predicted, strict=True)):
        if objective.kind == "binary" and not score.normaliser.relative:
            raw, labels = table.known(i)
            for name, values in ((f"{score_name(objective)} raw", raw),
                                 (f"{score_name(objective)} calibrated", score.normaliser(raw))):
                bins = reliability(labels, values)
                series.append(Series(name, bins.score.tolist(), bins.rate.tolist()))
                top = max([top, *bins.score.tolist(), *bins.rate.tolist()])
    if not series:
        return None
    return Figure(
        id="calibration", title="Calibration before fusion", kind="line", x=Axis("mean prediction"),
        y=Axis("observed rate"), series=[*series, Series("perfect", [0.0, top], [0.0, top])],
        caption="On the report window, in 20 bins of equal mass. On the diagonal a prediction is a rate.")


def options(decision: Decision) -> Figure:
    """The points to choose from, safest first."""
    names = [o.name for o in decision.tuned.objectives]
    lines = []
    for o in decision.options:
        changes = [o.changes[f"{decision.metric}.{name}"] for name in names]
        broken = ", ".join(c.name for c in o.verdict.broken)
        lines.append([f"{o.index}{' (chosen)' if o.chosen else ''}", o.point.function,
                      decision.tuned.numbers(o.point), o.risk,
                      *(f"{c.mean:+.4f} [{c.low:+.4f}, {c.high:+.4f}]" for c in changes), broken or "none"])
    return Figure(
        id="options", title="Points to choose from", kind="table", values=lines,
        columns=["point", "function", "weights and constants", "risk", *(f"{decision.metric} of {n}" for n in names),
                 "breaks"],
        caption="From the front, safest first: the risk is 1 minus the mean rank correlation with the order in "
                f"service, {decision.incumbent.name}. Changes against that order on the report window, with 95 % "
                "intervals.")


def kept(decision: Decision, values: Mapping[str, Orders], floor: float) -> Figure:
    """What is left of the best order for each objective."""
    shares = {window: decision.kept(orders) for window, orders in values.items()}
    lines = [[o.name, "primary" if limit is None else floor, *(found[o.name] for found in shares.values())]
             for o, limit in zip(decision.tuned.objectives, decision.tuned.rule.floors, strict=True)]
    return Figure(
        id="kept", title="What each objective keeps", kind="table", values=lines,
        columns=["objective", "floor on the tuning window", *shares],
        caption=f"{decision.metric} of the chosen order, as a share of the best that ordering by one score alone "
                "reaches on the same rows.")


def guardrails(decision: Decision) -> Figure:
    """The readings on the chosen point."""
    verdict = decision.chosen.verdict
    lines = [[c.name, c.value if math.isfinite(c.value) else "unknown", _bound(c.low), _bound(c.high),
              "holds" if c.holds else "broken"] for c in verdict.checks]
    lines += [[name, "", "", "", "not judged"] for name in verdict.unjudged]
    return Figure(
        id="guardrails", title="Guard-rails", kind="table", values=lines,
        columns=["guard-rail", "value", "at least", "at most", "outcome"],
        caption=f"The chosen order against {decision.incumbent.name} on the report window. One that is broken, or that "
                "cannot be measured, withholds the recommendation.")


def curse(decision: Decision) -> Figure:
    """Each function's gain on the rows it was tuned on beside that on others."""
    functions = list(decision.curse)
    series = []
    for window in ("tuning", "report"):
        found = [decision.curse[f][window] for f in functions]
        series.append(Series(f"{window} window", functions, [g.mean for g in found],
                             [HALF_WIDTH * g.error for g in found]))
    return Figure(
        id="winners_curse", title="The winner's curse", kind="bar", x=Axis("function"),
        y=Axis(f"gain in {decision.metric} of {decision.tuned.primary} over equal weights"), series=series,
        caption="Weights that are chosen because they do best on some rows do less well on others: the report window's "
                "gain is the one to believe. Whiskers are 95 % intervals, paired by list.")


def sensitivity(decision: Decision) -> Figure:
    """What a wrong weight costs."""
    return Figure(
        id="sensitivity", title="Sensitivity to each weight", kind="line",
        x=Axis("weight, times", "log"), y=Axis(f"change in {decision.metric} of {decision.tuned.primary}"),
        series=[Series(name, list(FACTORS), values) for name, values in decision.sensitivity.items()],
        caption="One weight of the chosen point is multiplied, the others stay; of a score that counts by its floor, "
                "the floor is. On the report window, so that the best factor need not be 1. A flat line is a number "
                "that little depends on.")


def volume(tuned: Tuned) -> Figure:
    """How the front grew, beside random search."""
    return Figure(
        id="hypervolume", title="Hypervolume of the front", kind="line", x=Axis("trials"), y=Axis("hypervolume"),
        series=[Series(name, list(range(1, len(values) + 1)), list(values)) for name, values in tuned.volumes.items()],
        caption=f"Of the points that {tuned.chosen.function} was tried at, on the rows that trials see, above the "
                "worst that a baseline reaches in each objective. Random search had as many trials.")


def exposure(found: Exposure) -> Figure:
    """The off-policy estimates."""
    lines: list[list[object]] = []
    for line in found.lines:
        e = line.estimate
        told = [line.refused, "", "", ""] if e is None else [
            e.value.mean, f"[{e.value.low:.4f}, {e.value.high:.4f}]",
            f"{e.gain.mean:+.4f} [{e.gain.low:+.4f}, {e.gain.high:+.4f}]", round(e.effective)]
        lines.append([line.order, line.objective, line.method, *told])
    return Figure(
        id="off_policy", title="What an order would bring if it were shown", kind="table", values=lines,
        columns=["order", "objective", "estimator", "per exposure", "95 % interval", "against the log",
                 "effective rows"],
        caption=f"Estimated from the chances with which {found.rows} exposures of the report window were logged at "
                "their positions. An estimate on too few effective rows is refused.")


def segments(found: Segmented, objectives: Sequence[Objective]) -> Figure:
    """The weights by segment."""
    weights = found.weights
    kept = {s: sum(k) / max(sum(w > 0 for w in k), 1) for s, k in weights.kept.items()}
    return Figure(
        id="segments", title=f"Weights by {found.field}", kind="table",
        values=[["all", sum(found.lists.values()), *weights.overall, ""],
                *([s, found.lists[str(s)], *map(float, weights.of(s)), kept[s]] for s in weights.offsets)],
        columns=[found.field, "lists", *(f"weight of {o.name}" for o in objectives), "share of its own kept"],
        caption="Each value's own weights, shrunk to the common ones by what its lists can vouch for. Values of too "
                "few lists have the common ones.")


def _bound(value: float) -> float | str:
    return value if math.isfinite(value) else ""
