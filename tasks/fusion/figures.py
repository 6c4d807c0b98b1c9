"""The figures of the stage tune_fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ctrmodels.data.schema import Objective
from ctrmodels.fusion import FusionSpec, Point, ScoreTable, score_name
from ctrmodels.metrics import Interval, reliability
from tasks.fusion.outcome import Tuned
from tasks.runtime.figure import Axis, Figure, Series

HALF_WIDTH = 1.96  # standard errors of a 95 % interval


def front(tuned: Tuned, metric: str, other: int) -> Figure:
    """Every tried point by its metric of the primary objective and of the objective with index ``other``."""
    x, objectives, points = tuned.rule.primary, tuned.objectives, tuned.points

    def series(name: str, members: Sequence[Point], labels: Sequence[str] | None = None) -> Series:
        return Series(name, [p.metrics[x] for p in members], [p.metrics[other] for p in members], labels=labels)

    tried = [(p, kept) for p, kept in zip(points, tuned.front, strict=True) if p.source not in ("equal", "corner")]
    functions = list(dict.fromkeys(p.function for p in points))
    equal = [p for p in points if p.source == "equal"]
    shown = [series("dominated", [p for p, kept in tried if not kept]),
             *(series(f"front, {f}", [p for p, kept in tried if kept and p.function == f]) for f in functions),
             series("one score alone", points[:len(objectives)], [f"only {o.name}" for o in objectives]),
             series("equal weights", equal, [f"equal, {p.function}" for p in equal]),
             series("recommended", [tuned.chosen], ["recommended"])]
    return Figure(
        id=f"pareto_front_{other + 1}" if len(objectives) > 2 else "pareto_front",
        title=f"{objectives[x].name} against {objectives[other].name}", kind="scatter",
        x=Axis(f"{metric} of {objectives[x].name}, tuning window"),
        y=Axis(f"{metric} of {objectives[other].name}, tuning window"), series=[s for s in shown if s.x],
        caption="Each point is one setting of the weights. On the front nothing can be gained for one objective "
                "without a loss for another" + ("." if len(objectives) == 2 else ", one not shown here included."))


def weights(bests: Sequence[Point], objectives: Sequence[Objective]) -> Figure:
    """The weights that the rule chooses for each function."""
    names = [o.name for o in objectives]
    return Figure(
        id="weights", title="Weights", kind="bar", x=Axis("objective"), y=Axis("weight of the normalised score"),
        series=[Series(p.function, names, list(p.weights)) for p in bests],
        caption="The best weights of each function by the rule. A score is normalised to a mean of 1, so "
                "equal bars mean equal influence.")


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
    for i, (objective, score) in enumerate(zip(table.objectives, spec.scores, strict=True)):
        if objective.kind == "binary":
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
