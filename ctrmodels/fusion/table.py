"""The rows of a window with everything that fusing their scores, and judging the outcome, asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ctrmodels.data.schema import Objective
from ctrmodels.fusion.evaluator import Evaluator, Metric, Resampled
from ctrmodels.fusion.functions import Column, FusionFunction
from ctrmodels.fusion.goal import Point, Window
from ctrmodels.fusion.normalisers import Bounded, Normaliser, Quantile, RankInList
from ctrmodels.fusion.spec import FusedScore, FusionSpec
from ctrmodels.metrics import Interval


def score_name(objective: Objective) -> str:
    """The score that is fused for an objective: its own on all rows, not the one given its parent."""
    return f"{objective.name}@all"


@dataclass(frozen=True)
class ScoreTable:
    """N rows of the predictions for M objectives, by one model or by several.

    Attributes:
        objectives: the objectives.
        scores: [N, M] raw scores on all rows.
        labels: [N, M] joint labels, NaN where unknown.
        groups: [N] list of each row.
        models: fingerprint of the model that gave the scores, "" = not known; or one per score, by name.
        relative: names of the scores that say something inside a list only.
        logged: columns of the log [N] that a function has beside the scores, by the name of their field, in its unit.
    """

    objectives: tuple[Objective, ...]
    scores: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    models: Mapping[str, str] | str = ""
    relative: frozenset[str] = frozenset()
    logged: Mapping[str, np.ndarray] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> ScoreTable:
        """The rows that the mask ``rows`` [N] selects."""
        return replace(self, scores=self.scores[rows], labels=self.labels[rows], groups=self.groups[rows],
                       logged={name: values[rows] for name, values in self.logged.items()})

    def sample(self, lists: int, seed: int) -> ScoreTable:
        """The rows of at most ``lists`` lists, drawn at random."""
        found = np.unique(self.groups)
        if len(found) <= lists:
            return self
        return self.take(np.isin(self.groups, np.random.default_rng(seed).choice(found, lists, replace=False)))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Raw scores, and columns of the log, by name."""
        return {score_name(o): self.scores[:, i] for i, o in enumerate(self.objectives)} | dict(self.logged)

    @property
    def lists(self) -> int:
        """Number of lists."""
        return len(np.unique(self.groups))

    def known(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels of objective ``index`` where its label is known."""
        known = ~np.isnan(self.labels[:, index])
        return self.scores[known, index], self.labels[known, index]

    def positives(self, index: int) -> str:
        """How many rows of objective ``index`` are positive, in words."""
        labels = self.known(index)[1]
        return f"{(labels > 0).sum()} of {len(labels)} rows positive"

    def fit(self, index: int, calibration: type[Normaliser]) -> FusedScore:
        """Objective ``index``'s normalised score: ``calibration`` of a probability, the quantile of an amount, the
        rank in its list of a relative score.

        Raises:
            ValueError: a binary objective has one class only, or a predicted amount is constant.
        """
        objective = self.objectives[index]
        name = score_name(objective)
        kind = Quantile if objective.kind == "regression" else calibration
        normaliser = (RankInList if name in self.relative else kind).fit(*self.known(index))
        unit = float(normaliser(self.scores[:, index], self.groups).mean())
        model = self.models if isinstance(self.models, str) else self.models[name]
        return FusedScore(name, normaliser, unit, model=model)

    def fit_logged(self, name: str, part: Column) -> FusedScore:
        """A column of the log as a function gets it: in units of its mean, within the bounds it has here.

        Raises:
            ValueError: it is constant, or no finite number.
        """
        normaliser = Bounded.fit(self.logged[name], np.zeros(len(self.groups)))
        return FusedScore(name, normaliser, float(self.logged[name].mean()), part=part)


class Judge:
    """Judges fused orders of one table by one or more metrics, with intervals from resampled lists.

    Args:
        table: the rows.
        spec: whose normalisers are applied; its weights are not used.
        metrics: ``ndcg`` or ``gauc``; the first is the one that is tuned.
        k: cut-off of NDCG.
    """

    def __init__(self, table: ScoreTable, spec: FusionSpec, metrics: Sequence[Metric], k: int) -> None:
        self.table, self._spec = table, spec
        self._normalised = spec.normalise(table.columns, table.groups)
        self.evaluators = [Evaluator(table.labels, table.groups, table.objectives, m, k) for m in metrics]
        self._resampled = [Resampled(e) for e in self.evaluators]

    @property
    def tuned(self) -> Evaluator:
        """The metric that is tuned."""
        return self.evaluators[0]

    def normalised(self, function: FusionFunction) -> np.ndarray:
        """[N, K] what ``function`` fuses."""
        places = self._spec.places(function)
        return self._normalised if len(places) == self._normalised.shape[1] else self._normalised[:, places]

    def window(self, function: FusionFunction) -> Window:
        """The rows to search the weights of ``function`` on."""
        return Window(self.normalised(function), self.tuned, self.table.groups)

    def errors(self, point: Point) -> list[Interval]:
        """The tuned metric of each objective under a point's order."""
        return self._resampled[0].intervals(self.fuse(point))

    def intervals(self, point: Point) -> dict[str, Interval]:
        """All metrics under a point's order, by ``METRIC.OBJECTIVE``."""
        return self._named([r.intervals(self.fuse(point)) for r in self._resampled])

    def gains(self, point: Point, baseline: Point) -> dict[str, Interval]:
        """What a point's order gains over another's, by ``METRIC.OBJECTIVE``."""
        return self.changes(self.fuse(point), self.fuse(baseline))

    def changes(self, fused: np.ndarray, baseline: np.ndarray) -> dict[str, Interval]:
        """The same for fused scores [N], wherever they come from."""
        return self._named([r.gains(fused, baseline) for r in self._resampled])

    def fuse(self, point: Point) -> np.ndarray:
        """[N] fused score at a point."""
        function = point.fusion()
        return function.score(self.normalised(function), point.weights, self.table.groups)

    def _named(self, found: Sequence[Sequence[Interval]]) -> dict[str, Interval]:
        return {f"{e.name}.{o.name}": value for e, values in zip(self.evaluators, found, strict=True)
                for o, value in zip(self.table.objectives, values, strict=True)}
