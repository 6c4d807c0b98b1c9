"""The figures of the stage tune_fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ctrmodels.data.schema import Objective
from ctrmodels.fusion import FusionSpec, Point, ScoreTable, score_name
from ctrmodels.metrics import Interval, reliability
from tasks.runtime.figure import Axis, Figure, Series

HALF_WIDTH = 1.96  # standard errors of a 95 % interval


def front(points: Sequence[Point], kept: Sequence[bool], chosen: Point, metric: str, objectives: Sequence[Objective],
          x: int, y: int) -> Figure:
    """Every tried point by its metric of objective ``x`` and ``y``, with the front and the chosen one."""
    def series(name: str, members: Sequence[Point]) -> Series:
        return Series(name, [p.metrics[x] for p in members], [p.metrics[y] for p in members],
                      labels=[told(p, objectives) for p in members])

    functions = list(dict.fromkeys(p.function for p in points))
    tried = [series(f, [p for p in points if p.function == f and p.source not in ("equal", "corner")])
             for f in functions]
    return Figure(
        id="pareto_front" if y == (0 if x else 1) else f"pareto_front_{y + 1}",
        title=f"{objectives[x].name} against {objectives[y].name}", kind="scatter",
        x=Axis(f"{metric} of {objectives[x].name}, tuning window"),
        y=Axis(f"{metric} of {objectives[y].name}, tuning window"),
        series=[*(s for s in tried if s.x), series("one score alone", [p for p in points if p.source == "corner"]),
                series("equal weights", [p for p in points if p.source == "equal"]),
                series("Pareto front", [p for p, k in zip(points, kept, strict=True) if k]),
                series("recommended", [chosen])],
        caption="Each point is one setting of the weights. None on the front can be improved in one objective "
                "without losing in another" + ("." if len(objectives) == 2 else "; those that look dominated "
                                               "here are better in an objective that is not shown."))


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


def told(point: Point, objectives: Sequence[Objective]) -> str:
    """A point in words."""
    shares = ", ".join(f"{o.name} {w:g}" for o, w in zip(objectives, point.weights, strict=True))
    return f"{point.function}: {shares}"
