"""What a search for weights is to reach, what it found, and the rows it judges by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctrmodels.fusion.functions import FUNCTIONS, FusionFunction

Evaluate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Window:
    """Rows to judge weights on.

    Attributes:
        scores: [N, K] normalised scores.
        evaluate: fused score [N] → metric of each objective [M], to be maximised.
        groups: [N] list of each row, for functions that need it.
    """

    scores: np.ndarray
    evaluate: Evaluate
    groups: np.ndarray | None = None

    def judge(self, function: FusionFunction) -> Callable[[Sequence[float]], tuple[float, ...]]:
        """Weights [K] → metrics [M]; the function's weight-free work is done once."""
        judge = self.judge_any(function)
        return lambda weights: judge(function, weights)

    def judge_any(self, function: FusionFunction) -> Callable[[FusionFunction, Sequence[float]], tuple[float, ...]]:
        """``function`` with any searched constants, weights [K] → metrics [M].

        The returned callable raises ValueError if a metric is no number: that objective cannot be judged here.
        """
        prepared = function.prepare(self.scores, self.groups)

        def judge(variant: FusionFunction, weights: Sequence[float]) -> tuple[float, ...]:
            metrics = tuple(self.evaluate(variant.combine(prepared, weights)).tolist())
            if not np.isfinite(metrics).all():
                raise ValueError(f"metrics {metrics}: an objective cannot be judged on these rows")
            return metrics

        return judge


@dataclass(frozen=True)
class Goal:
    """The rule: the largest ``primary`` metric among the points that reach every floor.

    Attributes:
        primary: index of the objective to maximise.
        floors: smallest admissible metric per objective, > 0; ``None`` where there is none.
    """

    primary: int
    floors: tuple[float | None, ...]

    def shortfall(self, metrics: Sequence[float]) -> float:
        """Sum over the objectives of the relative distance below the floor; 0 = all floors are reached."""
        return sum(max(0.0, -s) for s in self.slacks(metrics))

    def slacks(self, metrics: Sequence[float]) -> list[float]:
        """Relative distance above each floor, negative below it; only objectives that have one."""
        return [m / f - 1 for m, f in zip(metrics, self.floors, strict=True) if f is not None]

    def merit(self, metrics: Sequence[float]) -> tuple[float, float]:
        """Sort key: a smaller shortfall first, then the primary metric; larger is better."""
        return -self.shortfall(metrics), metrics[self.primary]


@dataclass(frozen=True)
class Point:
    """Evaluated weights.

    Attributes:
        function: id of the fusion function.
        weights: one per score.
        metrics: one per objective, on the window the point was judged on.
        source: ``equal`` weights, ``corner`` (one score alone), ``start`` (one score far above the others, or
            where the constants start), a tuner's id, or ``local`` (from the local search).
        constants: of the function.
    """

    function: str
    weights: tuple[float, ...]
    metrics: tuple[float, ...]
    source: str
    constants: Mapping[str, Any] = field(default_factory=dict)

    def fusion(self) -> FusionFunction:
        """The function with its constants."""
        return FUNCTIONS[self.function](**self.constants)

    @classmethod
    def of(cls, function: FusionFunction, weights: Sequence[float], metrics: Sequence[float], source: str) -> Point:
        """The point of ``function`` with its constants."""
        constants = function.to_json()
        return cls(constants.pop("id"), tuple(weights), tuple(metrics), source, constants)


def corners(function: FusionFunction, window: Window) -> list[Point]:
    """The order of each single score, but for a column of the log that the function has beside them.

    Monotone functions agree on them, so one function's serve for all.
    """
    judge, k = window.judge(function), window.scores.shape[1]
    alone = np.eye(k)[:k - (function.column is not None)]
    return [Point.of(function, w, judge(w), "corner") for w in map(tuple, alone.tolist())]


def equal(function: FusionFunction, window: Window) -> Point:
    """The order of equal weights, also of a function whose search moves no weights and does not pass there."""
    weights = (1.0,) * window.scores.shape[1]
    return Point.of(function, weights, window.judge(function)(weights), "equal")


def goal(singles: Sequence[Point], primary: int, floor: float) -> Goal:
    """Floors at ``floor`` times the best that the order of any single score reaches, per other objective."""
    best = (np.max([p.metrics for p in singles], axis=0) * floor).tolist()
    return Goal(primary, tuple(b if i != primary and b > 0 else None for i, b in enumerate(best)))


def best(points: Sequence[Point], goal: Goal) -> Point:
    """The point that the rule chooses; of equals the first."""
    return max(points, key=lambda p: goal.merit(p.metrics))
