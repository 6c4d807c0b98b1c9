"""All that the stage tune_fusion decided and measured, for its documents and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ctrmodels.fusion import FusionSpec, Judge, Point
from ctrmodels.metrics import Interval
from tasks.fusion.exposure import Exposure
from tasks.fusion.outcome import Tuned
from tasks.fusion.recommendation import Incumbent, Option
from tasks.fusion.segmented import Segmented

Orders = Mapping[str, Mapping[str, Interval]]
"""By order, then ``METRIC.OBJECTIVE``: what it is worth."""
FACTORS = tuple(2.0**power for power in np.arange(-2, 2.5, 0.5))
"""By which a weight is multiplied to see how much depends on it."""


@dataclass(frozen=True)
class Decision:
    """The decision.

    Attributes:
        tuned: what the search found.
        judges: by window.
        proposal: the order that the rule chooses.
        incumbent: the order in service.
        options: see :meth:`tasks.fusion.recommendation.Referee.options`.
        exposure: off-policy estimates.
        segmented: weights by segment, if they were asked for.
    """

    tuned: Tuned
    judges: Mapping[str, Judge]
    proposal: FusionSpec
    incumbent: Incumbent
    options: tuple[Option, ...]
    exposure: Exposure
    segmented: Segmented | None

    @cached_property
    def chosen(self) -> Option:
        """The proposal as the report window sees it."""
        return next(o for o in self.options if o.chosen)

    @property
    def withheld(self) -> bool:
        """Whether the proposal breaks a guard-rail."""
        return self.chosen.verdict.withheld

    @property
    def served(self) -> FusionSpec:
        """The order to serve: the proposal, or the incumbent where it is withheld."""
        return self.incumbent.spec if self.withheld else self.proposal

    @property
    def metric(self) -> str:
        """The metric that is tuned."""
        return self.judges["tuning"].tuned.name

    @property
    def name(self) -> str:
        """The metric that is maximised, as gains and values name it."""
        return f"{self.metric}.{self.tuned.primary}"

    @cached_property
    def curse(self) -> dict[str, dict[str, Interval]]:
        """By function, then window: what its best point gains over its equal weights in the primary metric."""
        return {p.function: {w: self.judges[w].gains(p, self.tuned.equals[p.function])[self.name]
                             for w in ("tuning", "report")} for p in self.tuned.best_by_function}

    @cached_property
    def optimism(self) -> float:
        """How much larger the proposal's gain over equal weights is on the rows it was tuned on."""
        equal = self.tuned.equals[self.tuned.chosen.function]
        tuning, report = (self.judges[w].gains(self.tuned.chosen, equal)[self.name].mean for w in ("tuning", "report"))
        return tuning - report

    def kept(self, orders: Orders) -> dict[str, float]:
        """By objective: the proposal's metric as a share of the best that the order of one score alone reaches."""
        names = {o.name: f"{self.metric}.{o.name}" for o in self.tuned.objectives}
        alone = [found for order, found in orders.items() if order.startswith("only.")]
        return {o: orders["recommended"][name].mean / max(found[name].mean for found in alone)
                for o, name in names.items()}

    @cached_property
    def sensitivity(self) -> dict[str, list[float]]:
        """By score: the primary metric on the report window if it counts each of ``FACTORS`` times, minus now.

        Scores that do not count are left out, and there is nothing to tell of a single one.
        """
        judge, point, primary = self.judges["report"], self.tuned.chosen, self.tuned.rule.primary
        function, names = point.fusion(), list(self.tuned.weights(point))
        if len(names) < 2:
            return {}
        now = judge.tuned.metrics[primary].mean(judge.fuse(point))

        def changed(index: int, factor: float) -> float:
            other = Point.of(*function.scaled(point.weights, index, factor), (), "sensitivity")
            return judge.tuned.metrics[primary].mean(judge.fuse(other)) - now

        return {name: [changed(i, f) for f in FACTORS] for i, name in enumerate(names)
                if function.scaled(point.weights, i, 2.0) != (function, point.weights)}
