"""Search for the weights of a fusion function: TPE over the whole box, then COBYLA from the best point."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna
from scipy.optimize import Bounds, NonlinearConstraint, minimize

from ctrmodels.fusion.functions import FusionFunction
from ctrmodels.fusion.pareto import non_dominated

LOG_WEIGHT_BOUND = 3.0
"""Weights are searched in [e⁻³, e³] times the primary objective's, which is 1: about 1/20 to 20."""
EXPLORED_SHARE = 0.6
FIRST_STEP, LAST_STEP = 0.3, 1e-4
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
        source: ``equal`` weights, ``corner`` (one score alone), ``start`` (one far above the
            others), ``tpe`` or ``local``.
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
    best = (np.max([p.metrics for p in singles], axis=0) * floor).tolist()
    return Goal(primary, tuple(b if i != primary and b > 0 else None for i, b in enumerate(best)))


def best(points: Sequence[Point], goal: Goal) -> Point:
    """The point that the rule chooses; of equals the first."""
    return max(points, key=lambda p: goal.merit(p.metrics))


def tune(function: FusionFunction, window: Window, goal: Goal, trials: int, seed: int = 0,
         screen: Window | None = None) -> list[Point]:
    """Try ``trials`` weights; the equal ones first, then one score far above the others, each in turn.

    Score i predicts objective i. The primary objective's score has the weight 1, since a common factor
    changes no order; the logarithms of the other weights are searched within ±3 (``LOG_WEIGHT_BOUND``).
    The first 60 % of the trials are the start points and TPE (Bergstra et al., NeurIPS 2011; multivariate,
    with constraints), which finds the region; COBYLA (Powell 1994), a local search by linear models, spends
    the rest from the best point so far. It matters most where a floor binds, since the best weights then lie
    on an edge that sampling rarely hits. Every trial sees the same rows, so differences between trials are
    no sampling noise.

    Args:
        function: what to tune.
        window: rows that the returned metrics are of.
        goal: the rule.
        trials: number of evaluations at most; the local search may end sooner.
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

    local = trials - round(EXPLORED_SHARE * trials)
    if local < k + 1:  # too few for a linear model of k - 1 variables and a step
        local = 0
    _explore(attempt, goal, k, trials - local, seed)
    if local:
        _refine(attempt, goal, best(points, goal), local)
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


def _refine(attempt: Callable[[np.ndarray, str], Point], goal: Goal, start: Point, trials: int) -> None:
    """COBYLA from ``start``: linear models of the primary metric and of the distances to the floors."""
    def inside(logs: np.ndarray) -> np.ndarray:  # COBYLA keeps to bounds only nearly, and weights are rounded
        return np.clip(logs, -LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND)

    centre = inside(np.log(np.delete(start.weights, goal.primary)))
    scale = max(abs(start.metrics[goal.primary]), np.finfo(float).tiny)
    seen = {centre.tobytes(): start.metrics}

    def metrics(logs: np.ndarray) -> tuple[float, ...]:
        logs = inside(logs)
        if logs.tobytes() not in seen:  # objective and constraints are asked for one by one
            seen[logs.tobytes()] = attempt(logs, "local").metrics
        return seen[logs.tobytes()]

    floors = NonlinearConstraint(lambda logs: goal.slacks(metrics(logs)), 0, np.inf)
    minimize(lambda logs: -metrics(logs)[goal.primary] / scale, centre, method="COBYLA",
             bounds=Bounds(-LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND),
             constraints=[floors] if goal.slacks(start.metrics) else [],
             options={"rhobeg": FIRST_STEP, "tol": LAST_STEP, "maxiter": trials})


def _finalists(points: Sequence[Point], goal: Goal) -> list[Point]:
    """The equal weights, the best few by the rule and the non-dominated ones, in the order they were tried."""
    by_merit = sorted(range(len(points)), key=lambda i: goal.merit(points[i].metrics), reverse=True)
    front = np.flatnonzero(non_dominated(np.array([p.metrics for p in points])))
    return [points[i] for i in sorted({0, *by_merit[:FINALISTS], *front.tolist()})]
