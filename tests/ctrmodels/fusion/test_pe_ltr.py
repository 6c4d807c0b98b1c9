"""Pareto-efficient weights: the exact solver against brute force, and where trainings under bounds end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize

from ctrmodels.fusion import ParetoWeights, bound_grid, pareto_weights, trace_front

CENTRES = np.array([[0.0, 0.0], [2.0, 1.0]])
START = np.array([1.5, -2.0])
Weigh = Callable[[np.ndarray], np.ndarray]


def descend(weigh: Weigh, step: float = 0.02, steps: int = 4000) -> np.ndarray:
    """Minimise f_k = ‖x - centre_k‖² under the weights of each step; the Pareto set is the segment between both."""
    x = START
    for _ in range(steps):
        gradients = 2 * (x - CENTRES)
        x = x - step * weigh(gradients) @ gradients
    return x


def along(x: np.ndarray) -> tuple[float, float]:
    """Where on the segment the nearest point lies, 0 = first centre, and the distance from there."""
    direction = CENTRES[1] - CENTRES[0]
    t = float((x - CENTRES[0]) @ direction / (direction @ direction))
    return t, float(np.linalg.norm(CENTRES[0] + t * direction - x))


def norm(gradients: np.ndarray, weights: np.ndarray) -> float:
    return float(np.linalg.norm(weights @ gradients))


def enumerated(gradients: np.ndarray, bounds: np.ndarray) -> float:
    """The shortest sum over all sets of weights that may leave their bounds."""
    shortest, k = np.inf, len(bounds)
    for size in range(1, k + 1):
        for free in map(list, combinations(range(k), size)):
            gram = gradients @ gradients.T
            system = np.ones((size + 1, size + 1))
            system[:size, :size], system[-1, -1] = gram[np.ix_(free, free)], 0
            u = np.zeros(k)
            u[free] = np.linalg.solve(system, np.append(-(gram @ bounds)[free], 1 - bounds.sum()))[:size]
            if (u >= -1e-12).all():
                shortest = min(shortest, norm(gradients, bounds + u))
    return shortest


def cases(objectives: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(objectives)
    return [(rng.normal(size=(objectives, 8)) * rng.exponential(size=(objectives, 1)),
             rng.dirichlet(np.ones(objectives)) * rng.random()) for _ in range(count)]


# --- the weights


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_exact_weights_are_the_best_of_all_supports(objectives: int) -> None:
    for gradients, bounds in cases(objectives, 60):
        weights = pareto_weights(gradients, bounds)
        assert weights.sum() == pytest.approx(1) and (weights >= bounds - 1e-12).all()
        assert norm(gradients, weights) <= enumerated(gradients, bounds) + 1e-8


def test_exact_weights_are_not_beaten_by_a_general_solver() -> None:
    for gradients, bounds in cases(3, 200):
        found = minimize(lambda w, g=gradients: np.square(w @ g).sum(), bounds + (1 - bounds.sum()) / 3,
                         method="SLSQP", bounds=[(b, 1) for b in bounds],
                         constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-14})
        assert norm(gradients, pareto_weights(gradients, bounds)) <= norm(gradients, found.x) + 1e-8


def suboptimal(objectives: int, weigh: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    return float(np.mean([norm(g, weigh(g, b)) > 1.001 * enumerated(g, b) for g, b in cases(objectives, 200)]))


def test_the_papers_two_steps_are_exact_for_two_objectives_and_not_for_more() -> None:
    """Measured beside the method: 0 % of random cases with two objectives, 17 to 62 % with three to five."""
    def paper(gradients: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        return pareto_weights(gradients, bounds, "paper")

    assert suboptimal(2, paper) == 0
    assert suboptimal(3, paper) > 0.05
    assert suboptimal(4, paper) > suboptimal(3, paper)
    for objectives in (2, 3, 4):
        assert suboptimal(objectives, pareto_weights) == 0
        for gradients, bounds in cases(objectives, 20):
            weights = paper(gradients, bounds)
            assert weights.sum() == pytest.approx(1) and (weights >= bounds - 1e-12).all()


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_two_objectives_have_a_closed_form(mode: str) -> None:
    for gradients, bounds in cases(2, 50):
        first, second = gradients
        free = (second - first) @ second / np.square(first - second).sum()
        expected = np.clip(free, bounds[0], 1 - bounds[1])
        assert pareto_weights(gradients, bounds, mode)[0] == pytest.approx(expected, abs=1e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_collinear_vanishing_and_tiny_gradients_leave_weights(mode: str) -> None:
    g = np.array([1.0, 2.0, 3.0])
    for gradients in (np.stack([g, g]), np.stack([g, -g]), np.zeros((2, 3)), 1e-12 * np.stack([g, -2 * g])):
        weights = pareto_weights(gradients, [0.1, 0.2], mode)  # type: ignore[arg-type]
        assert weights.sum() == pytest.approx(1) and (weights >= np.array([0.1, 0.2]) - 1e-12).all()
    assert pareto_weights(np.stack([g, -2 * g]), [0, 0]) == pytest.approx([2 / 3, 1 / 3])
    assert pareto_weights(np.stack([g, -g]), [0.7, 0.3]) == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize(("gradients", "bounds", "message"), [
    (np.ones((2, 3)), [0.6, 0.5], "at most 1"), (np.ones((2, 3)), [-0.1, 0.5], "at most 1"),
    (np.ones((2, 3)), [0.1], "do not fit"), (np.full((2, 3), np.nan), [0, 0], "finite"),
    (np.ones((2, 3)), [np.nan, 0], "at most 1"), (np.ones(3), [0, 0, 0], "do not fit")])
def test_useless_gradients_and_bounds_are_refused(gradients: np.ndarray, bounds: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pareto_weights(gradients, bounds)


# --- in a training


@pytest.mark.parametrize("mode", ["exact", "paper"])
@pytest.mark.parametrize(("bounds", "place"), [
    ((0.0, 0.0), 0.2), ((0.0, 0.7), 0.7), ((0.9, 0.0), 0.1), ((0.6, 0.3), 0.3), ((0.1, 0.5), 0.5)])
def test_bounds_decide_where_a_training_ends(bounds: tuple[float, float], place: float, mode: str) -> None:
    """Without bounds at the projection of the start; with them always in [c_2, 1 - c_1]."""
    weights = ParetoWeights(bounds, mode)  # type: ignore[arg-type]
    x = descend(weights.update)
    t, distance = along(x)
    assert t == pytest.approx(place, abs=1e-3) and bounds[1] - 1e-3 <= t <= 1 - bounds[0] + 1e-3
    assert distance < 1e-4 and norm(2 * (x - CENTRES), weights.weights) < 1e-4


@pytest.mark.parametrize("second", [0.5, 0.7])
def test_fixed_weights_end_where_they_point_whatever_the_start(second: float) -> None:
    """The stub: t is the second weight, not the projection .2."""
    t, _ = along(descend(lambda _: np.array([1 - second, second])))
    assert t == pytest.approx(second, abs=1e-3) and abs(t - 0.2) > 1e-3


def test_losses_of_other_units_get_the_same_weights_once_they_are_scaled() -> None:
    gradients, losses = cases(3, 1)[0][0], np.array([2.0, 3.0, 0.5])
    units = np.array([1.0, 100.0, 1e-3])
    plain, other = ParetoWeights((0, 0, 0)), ParetoWeights((0, 0, 0))
    assert other.update(units[:, None] * gradients, units * losses) == pytest.approx(plain.update(gradients, losses))
    assert ParetoWeights((0, 0, 0)).update(units[:, None] * gradients) != pytest.approx(plain.weights, abs=0.05)
    with pytest.raises(ValueError, match="positive"):
        ParetoWeights((0, 0)).update(np.ones((2, 3)), [1, 0])


def test_memory_smooths_the_weights() -> None:
    weights = ParetoWeights((0.2, 0.4), memory=0.9)
    assert weights.weights == pytest.approx([0.4, 0.6])
    gradients = np.array([[0.0, 1.0], [0.0, 100.0]])
    assert weights.update(gradients) == pytest.approx([0.9 * 0.4 + 0.1 * 0.6, 0.9 * 0.6 + 0.1 * 0.4])
    with pytest.raises(ValueError, match="below 1"):
        ParetoWeights((0, 0), memory=1.0)


# --- fronts


def test_the_grid_of_bounds_leaves_every_training_a_choice() -> None:
    grid = list(bound_grid(2))
    assert len(grid) == 55 and (0.3, 0.6) in grid and (0.0, 0.0) in grid
    assert max(map(sum, bound_grid(3, 0.15))) <= 0.9
    with pytest.raises(ValueError, match="shares above 0"):
        list(bound_grid(2, 0))


def test_trainings_under_bounds_trace_the_front() -> None:
    def train(bounds: tuple[float, ...]) -> np.ndarray:
        return -np.square(descend(ParetoWeights(bounds).update, 0.1, 150) - CENTRES).sum(axis=1).round(6)

    bounds = [b for b in bound_grid(2, 0.3) if b != (0.3, 0.3)]
    front = trace_front(train, bounds, (-5.0, -5.0))
    assert front.efficient.all() and (np.diff(front.hypervolumes) >= -1e-12).all()
    assert np.sqrt(-front.metrics).sum(axis=1) == pytest.approx(np.full(len(bounds), 5**0.5), abs=1e-4)
    alone = trace_front(lambda _: train((0.0, 0.0)), bounds, (-5.0, -5.0))
    assert front.hypervolumes[-1] > 1.2 * alone.hypervolumes[-1]
    with pytest.raises(ValueError, match="give bounds"):
        trace_front(train, [], (0, 0))
