"""From tuned points to a recommendation: what it is held against, how far it reaches, and whether it is withheld."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.fusion import (
    FusionSpec,
    Guardrails,
    Judge,
    Point,
    Proposal,
    ScoreTable,
    Verdict,
    rank_correlation,
    recommended,
)
from ctrmodels.metrics import Interval, ListRanks
from tasks.config import TuneFusion
from tasks.fusion.inputs import Logged
from tasks.fusion.outcome import Tuned

MOST_OPTIONS = 5
LEAST_STEP = 0.1
"""Options this near to the chosen one, as a share of the front's range of risks, are no other choice."""


@dataclass(frozen=True)
class Incumbent:
    """The order in service.

    Attributes:
        name: ``equal weights``, or the name of the file it comes from, whose folders are nobody's business.
        spec: the order.
    """

    name: str
    spec: FusionSpec

    @classmethod
    def of(cls, path: str, spec: FusionSpec, table: ScoreTable) -> Incumbent:
        """The order ``spec`` that ``path``, a fusion.json, says is in service.

        Raises:
            InputError: it is about scores or models other than those of ``table``.
        """
        absent = [s.name for s in spec.scores if s.name not in table.columns]
        if absent:
            raise InputError(path, "scores", absent[0], "is no score of this run",
                             "name the fusion.json of the same objectives, or leave tune_fusion.incumbent out")
        spec.check_models(table.models)
        return cls(Path(path).name, spec)

    def fuse(self, table: ScoreTable) -> np.ndarray:
        """[N] its score of the rows."""
        return self.spec.score(table.columns, table.groups, table.models)


@dataclass(frozen=True)
class Option:
    """A point to choose from, as the report window sees it.

    Attributes:
        index: the point's place in ``front.parquet``.
        point: the point.
        risk: 1 - mean rank correlation with the incumbent inside a list: how much of the order changes.
        changes: metric minus the incumbent's, by ``METRIC.OBJECTIVE``.
        verdict: the guard-rails.
        chosen: whether the rule chooses it.
    """

    index: int
    point: Point
    risk: float
    changes: Mapping[str, Interval]
    verdict: Verdict
    chosen: bool


@dataclass(frozen=True)
class Referee:
    """Holds points against the incumbent on the report window.

    Attributes:
        logged: its rows.
        judge: its metrics.
        incumbent: [N] the score of the order in service.
        spec: whose calibrations are looked at.
        primary: index of the objective whose metric is compared in the segments.
        settings: the limits.
    """

    logged: Logged
    judge: Judge
    incumbent: np.ndarray
    spec: FusionSpec
    primary: int
    settings: TuneFusion

    def verdict(self, fused: np.ndarray) -> Verdict:
        """The guard-rails' readings of the order by ``fused`` [N]."""
        table, limits = self.logged.table, self.settings.guardrails
        probabilities = {}
        for i, (objective, score) in enumerate(zip(table.objectives, self.spec.predicted, strict=True)):
            if objective.kind == "binary" and not score.normaliser.relative:
                raw, labels = table.known(i)
                probabilities[objective.name] = labels, score.normaliser(raw)
        return Guardrails(
            k=self.settings.k, calibration=limits.calibration, coverage=limits.coverage, gini=limits.gini,
            segment=limits.segment, lists=limits.lists, rank_correlation=limits.rank_correlation,
        ).judge(Proposal(
            table.groups, self.logged.items if table.lists > 1 else None, fused, self.incumbent,
            self.judge.tuned.metrics[self.primary], probabilities,
            {name: self.logged.fields[name] for name in limits.segments}))

    def options(self, tuned: Tuned) -> tuple[Option, ...]:
        """The point that the rule chooses and up to four more of the front that reach the floors, safest first."""
        chosen = tuned.chosen_index
        front = [i for i, kept in enumerate(tuned.front) if kept]
        admissible = [i for i in front if not tuned.rule.shortfall(tuned.points[i].metrics)] or front
        ranks = ListRanks(self.logged.table.groups)
        risks = {i: self._risk(ranks, tuned.points[i]) for i in dict.fromkeys([*admissible, chosen])}
        apart = LEAST_STEP * (max(risks.values()) - min(risks.values()))
        others = [i for i in admissible if i != chosen and abs(risks[i] - risks[chosen]) > apart]
        if others:
            picked = recommended(np.array([tuned.points[i].metrics for i in others]),
                                 np.array([risks[i] for i in others]), MOST_OPTIONS - 1)
            others = [others[i] for i in picked]
        found = []
        for i in sorted([chosen, *others], key=risks.__getitem__):
            fused = self.judge.fuse(tuned.points[i])
            found.append(Option(i, tuned.points[i], risks[i], self.judge.changes(fused, self.incumbent),
                                self.verdict(fused), i == chosen))
        return tuple(found)

    def _risk(self, ranks: ListRanks, point: Point) -> float:
        correlation = rank_correlation(ranks, self.judge.fuse(point), self.incumbent)
        return round(1 - float(np.nan_to_num(correlation, nan=-1.0)), 12)
