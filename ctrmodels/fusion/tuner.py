"""Search for the weights of a fusion function: TPE over the whole box, then steps around the best point."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna

from ctrmodels.fusion.functions import FusionFunction
from ctrmodels.fusion.pareto import non_dominated

LOG_WEIGHT_BOUND = 3.0
"""Weights are searched in [e⁻³, e³] times the primary objective's, which is 1: about 1/20 to 20."""
EXPLORED_SHARE = 0.6
FIRST_STEP = 0.3
FINALISTS = 8

Evaluate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Window:
    """Rows to judge weights on.

    Attributes:
        scores: [N, K] normalised scores.
        evaluate: fused score [N] → metric of each objective [M], to be maximised.
    """

    scores: np.ndarray
    evaluate: Evaluate

    def judge(self, function: FusionFunction) -> Callable[[Sequence[float]], tuple[float, ...]]:
        """Weights [K] → metrics [M]; the function's weight-free work is done once."""
        prepared = function.prepare(self.scores)
        return lambda weights: tuple(self.evaluate(function.combine(prepared, weights)).tolist())


@dataclass(frozen=True)
class Goal:
    """The rule: the largest ``primary`` metric among the points that reach every floor.

    Attributes:
        primary: index of the objective to maximise.
        floors: smallest admissible metric per objective, -inf where there is none.
    """

    primary: int
    floors: tuple[float, ...]

    def shortfall(self, metrics: Sequence[float]) -> float:
        """Sum over the objectives of the relative distance below the floor; 0 = all floors are reached."""
        return sum((f - m) / abs(f) for m, f in zip(metrics, self.floors, strict=True) if m < f)

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
        source: ``equal`` weights, ``corner`` (one score alone), ``start``, ``tpe`` or ``local``.
    """

    function: str
    weights: tuple[float, ...]
    metrics: tuple[float, ...]
    source: str


def corners(function: FusionFunction, window: Window) -> list[Point]:
    """The order of each single score. Monotone functions agree on them, so one function's serve for all."""
    judge, k = window.judge(function), window.scores.shape[1]
    return [Point(function.id, w, judge(w), "corner") for w in map(tuple, np.eye(k).tolist())]


def goal(singles: Sequence[Point], primary: int, floor: float) -> Goal:
    """Floors at ``floor`` times the best that the order of any single score reaches, per other objective."""
    best = np.max([p.metrics for p in singles], axis=0) * floor
    return Goal(primary, tuple(-np.inf if i == primary else float(b) for i, b in enumerate(best)))


def best(points: Sequence[Point], goal: Goal) -> Point:
    """The point that the rule chooses; of equals the first."""
    return max(points, key=lambda p: goal.merit(p.metrics))


def tune(function: FusionFunction, window: Window, goal: Goal, trials: int, seed: int = 0,
         screen: Window | None = None) -> list[Point]:
    """Try ``trials`` weights; the equal ones first, then one score far above the others, each in turn.

    Scores and objectives are paired: score i predicts objective i. The primary score's weight is 1, since a
    common factor changes no order; the logarithms of the others are searched in ±:data:`LOG_WEIGHT_BOUND`.
    The first 60 % of the trials are the start points and TPE (Bergstra et al., NeurIPS 2011; multivariate,
    constraints as in Watanabe and Hutter, IJCAI 2023), the rest a pattern search with random bases from the
    best point so far (Audet and Dennis, SIAM J. Optim. 2006, without its poll ordering): TPE alone stops
    within about 15 % of the best weights, the steps bring that to a few per cent. Every trial sees the same
    rows, so differences are not sampling noise.

    Args:
        function: what to tune.
        window: rows that the returned metrics are of.
        goal: the rule.
        trials: number of evaluations.
        seed: of the search.
        screen: fewer rows to judge the trials on. The points that come out best or non-dominated there are
            judged again on ``window``, and only they are returned.

    Returns:
        The points in the order they were tried.
    """
    k = window.scores.shape[1]
    if k == 1:  # any weight gives the same order
        return [Point(function.id, (1.0,), window.judge(function)((1.0,)), "equal")]
    judge = (screen or window).judge(function)
    points: list[Point] = []

    def attempt(logs: np.ndarray, source: str) -> Point:
        weights = tuple(np.round(np.exp(np.insert(logs, goal.primary, 0.0)), 6).tolist())
        points.append(Point(function.id, weights, judge(weights), source))
        return points[-1]

    explored = max(1, round(EXPLORED_SHARE * trials))
    _explore(attempt, goal, k, explored, seed)
    _refine(attempt, goal, best(points, goal), trials - explored, seed)
    if screen is None:
        return points
    again = window.judge(function)
    return [replace(p, metrics=again(p.weights)) for p in _finalists(points, goal)]


def _explore(attempt: Callable[[np.ndarray, str], Point], goal: Goal, k: int, trials: int, seed: int) -> None:
    """The start points, then TPE."""
    names = [f"log_weight_{i}" for i in range(k - 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        starts = [np.zeros(k - 1), *_starts(k, goal.primary)]
        for start in starts:
            study.enqueue_trial(dict(zip(names, start.tolist(), strict=True)))

        def objective(trial: optuna.Trial) -> float:
            logs = np.array([trial.suggest_float(n, -LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND) for n in names])
            source = "equal" if trial.number == 0 else "start" if trial.number < len(starts) else "tpe"
            metrics = attempt(logs, source).metrics
            trial.set_constraint("floors", goal.shortfall(metrics))
            return metrics[goal.primary]

        study.optimize(objective, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _starts(k: int, primary: int) -> Iterator[np.ndarray]:
    """Log-weights that let one score rule, for each score, the primary one's weight being 1."""
    others = [i for i in range(k) if i != primary]
    for ruler in range(k):
        yield np.array([LOG_WEIGHT_BOUND if i == ruler else -LOG_WEIGHT_BOUND for i in others])


def _refine(attempt: Callable[[np.ndarray, str], Point], goal: Goal, start: Point, trials: int,
            seed: int) -> None:
    """Steps along a random basis, to the first better point; half as long when no direction is better."""
    rng = np.random.default_rng(seed)
    centre, merit, step = np.log(np.delete(start.weights, goal.primary)), goal.merit(start.metrics), FIRST_STEP
    while trials > 0:
        basis = np.linalg.qr(rng.normal(size=(len(centre), len(centre))))[0]
        for direction in (*basis, *-basis):
            proposal = np.clip(centre + step * direction, -LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND)
            found = goal.merit(attempt(proposal, "local").metrics)
            trials -= 1
            if found > merit:
                centre, merit = proposal, found
                break
            if not trials:
                return
        else:
            step /= 2


def _finalists(points: Sequence[Point], goal: Goal) -> list[Point]:
    """The equal weights, the best few by the rule and the non-dominated ones, in the order they were tried."""
    by_merit = sorted(range(len(points)), key=lambda i: goal.merit(points[i].metrics), reverse=True)
    front = np.flatnonzero(non_dominated(np.array([p.metrics for p in points])))
    return [points[i] for i in sorted({0, *by_merit[:FINALISTS], *front.tolist()})]
