"""Search for the weights of a fusion function, and for the function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import Bounds, NonlinearConstraint, minimize

from ctrmodels.fusion.functions import FusionFunction
from ctrmodels.fusion.goal import Goal, Point, Window, best, equal
from ctrmodels.fusion.pareto import non_dominated
from ctrmodels.fusion.study import Problem, Storage, Trials
from ctrmodels.fusion.tuners import Tpe, Tuner

FIRST_STEP, LAST_STEP = 0.3, 1e-4
FINALISTS = 8
DEFAULT = Tpe()


def tune(function: FusionFunction, window: Window, goal: Goal, trials: int, seed: int = 0,
         screen: Window | Sequence[Window] | None = None, tuner: Tuner = DEFAULT,
         storage: Path | None = None) -> list[Point]:
    """Try ``trials`` weights; the equal ones first, then one score far above the others, each in turn.

    Score i predicts objective i. What is searched is the function's ``ranges``: for most the primary objective's
    score has the weight 1, the logarithms of the other weights lie within ±3. A function that searches no weights
    starts where its other numbers do, and one without any number to search is judged once. The tuner proposes; a
    share of the trials, its ``polish``, goes to COBYLA (Powell 1994), a local search by linear models from the best
    point so far. It matters most where a floor binds, since the best weights then lie on an edge that sampling
    rarely hits.

    A search with a ``storage`` can be interrupted at any time: called again with the same arguments it goes
    on, and its outcome is that of an uninterrupted one. With more ``trials`` it is continued. Processes that
    call it with the same arguments at the same time share the work, and all return the outcome, which then
    depends on who was faster.

    Args:
        function: what to tune.
        window: rows that the returned metrics are of.
        goal: the rule.
        trials: number of evaluations at most; the local search may end sooner.
        seed: of the search.
        screen: fewer rows to judge the trials on, or several such windows which trials take in turn: each is
            then judged on other lists, so that luck on one sample of them is noise which averages out, and the
            local search keeps to the first. The points that come out best or non-dominated there are judged
            again on ``window``, and only they are returned.
        tuner: how to search.
        storage: a file that keeps the trials; it may hold searches of several functions.

    Returns:
        The points in the order they were tried.

    Raises:
        InputError: the storage holds a search of this function on other rows or with other settings.
        ValueError: an objective cannot be judged on the rows, or a score does not suit the function.
    """
    return _search(function, window, goal, trials, seed, screen, tuner, Storage(storage))


def race(functions: Sequence[FusionFunction], window: Window, goal: Goal, trials: int, seed: int = 0,
         screen: Window | Sequence[Window] | None = None, tuner: Tuner = DEFAULT,
         storage: Path | None = None) -> list[Point]:
    """Search for the function as well: after each round the worse half is out, and the others are searched on.

    Successive halving (Jamieson and Talwalkar, AISTATS 2016): every round has the same share of the trials,
    divided evenly among the functions that are left. Arguments are those of :func:`tune`, ``trials`` being the
    sum over all functions.

    Returns:
        The points of all functions; :func:`~ctrmodels.fusion.goal.best` of them is the choice.

    Raises:
        InputError, ValueError: as :func:`tune`; two functions have the same id.
    """
    if len({f.id for f in functions}) < len(functions) or not functions:
        raise ValueError(f"functions {[f.id for f in functions]}: different ones are expected")
    kept, left = Storage(storage), list(functions)
    rounds = 1 + math.ceil(math.log2(len(functions)))
    spent, found = dict.fromkeys(left, 0), {}
    for _ in range(rounds):
        for function in left:
            spent[function] += trials // (rounds * len(left))
            found[function] = _search(function, window, goal, max(spent[function], 1), seed, screen, tuner, kept)
        left.sort(key=lambda f: goal.merit(best(found[f], goal).metrics), reverse=True)
        left = left[:math.ceil(len(left) / 2)]
    return [point for function in functions for point in found[function]]


def _search(function: FusionFunction, window: Window, goal: Goal, trials: int, seed: int,
            screen: Window | Sequence[Window] | None, tuner: Tuner, storage: Storage) -> list[Point]:
    scores = window.scores.shape[1]
    if scores == 1:  # any weight gives the same order
        return [equal(function, window)]
    if not function.ranges(scores, goal.primary):
        given, weights = function.at({}, scores, goal.primary)
        return [Point.of(given, weights, window.judge(given)(weights), "start")]
    screens = (window,) if screen is None else (screen,) if isinstance(screen, Window) else tuple(screen)
    problem = Problem(function, goal, screens, tuner, seed)
    local = trials - round((1 - tuner.polish) * trials)
    if local < len(problem.ranges) + 2:  # see _polish
        local = 0
    with storage.shared() as worker:
        alone = worker.alone_now()
        if not alone:
            worker.together()
        kept = Trials(problem, storage.trials, storage.path or "search")
        if not alone and not kept.begun:  # who was alone died before it had begun
            worker.alone()
            alone = True
        if alone:
            kept.adopt()
            kept.begin(trials - local)
        worker.together()
        kept.explore(trials - local)
        worker.alone()
        kept.adopt()
        if local:
            _polish(kept, local)
        points = kept.points()
    if screen is None:
        return points
    again = window.judge_any(function)
    return [replace(p, metrics=again(p.fusion(), p.weights)) for p in _finalists(points, goal)]


def _polish(kept: Trials, trials: int) -> None:
    """COBYLA from the best point: linear models of the primary metric and of the distances to the floors."""
    problem, stage = kept.problem, kept.explored()
    goal, names = problem.goal, list(problem.ranges)
    trials -= kept.polished(stage)
    if trials < len(names) + 2:  # too few for a linear model and a step
        return
    low, high = (np.array([getattr(r, end) for r in problem.ranges.values()]) for end in ("low", "high"))
    start = best([p for p in kept.points() if p.source != "local"], goal)
    theta = kept.theta(start)
    centre = tuple(theta[n] for n in names)
    seen = {centre: start.metrics} if len(problem.windows) == 1 else {}  # else it was judged on other rows

    def metrics(at: np.ndarray) -> tuple[float, ...]:
        at = np.clip(at, low, high)  # COBYLA keeps to bounds only nearly
        key = tuple(at.tolist())
        if key not in seen:  # objective and constraints are asked for one by one
            seen[key] = kept.attempt(dict(zip(names, key, strict=True)), stage)
        return seen[key]

    scale = max(abs(start.metrics[goal.primary]), np.finfo(float).tiny)
    floors = NonlinearConstraint(lambda at: goal.slacks(metrics(at)), 0, np.inf)
    minimize(lambda at: -metrics(at)[goal.primary] / scale, np.array(centre), method="COBYLA",
             bounds=Bounds(low, high), constraints=[floors] if goal.slacks(start.metrics) else [],
             options={"rhobeg": FIRST_STEP, "tol": LAST_STEP, "maxiter": trials})


def _finalists(points: Sequence[Point], goal: Goal) -> list[Point]:
    """The equal weights, the best few by the rule and the non-dominated ones, in the order they were tried."""
    by_merit = sorted(range(len(points)), key=lambda i: goal.merit(points[i].metrics), reverse=True)
    front = np.flatnonzero(non_dominated(np.array([p.metrics for p in points])))
    return [points[i] for i in sorted({0, *by_merit[:FINALISTS], *front.tolist()})]
