from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ctrmodels.fusion import hypervolume, hypervolumes, non_dominated, recommended
from ctrmodels.fusion.pareto import knee, least_misery, nash_product, thinned, weighted


def brute_front(points: np.ndarray) -> np.ndarray:
    def dominated(p: np.ndarray) -> bool:
        return any((q >= p).all() and (q > p).any() for q in points)

    return np.array([not np.isnan(p).any() and not dominated(p) for p in points])


def brute_volume(points: np.ndarray, reference: np.ndarray) -> float:
    """Union of boxes by inclusion and exclusion."""
    boxes = np.maximum(points - reference, 0)
    return sum((-1) ** (n + 1) * np.min(subset, axis=0).prod()
               for n in range(1, len(boxes) + 1) for subset in combinations(boxes, n))


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_front_equals_brute_force_with_ties_duplicates_and_nan(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    points = rng.normal(size=(1000, dimensions)).round(1)
    points[::10] = points[rng.integers(0, 1000, 100)]
    points[rng.random(points.shape) < 0.02] = np.nan
    expected = brute_front(points)
    assert expected.any()
    assert np.array_equal(non_dominated(points), expected)


def test_duplicates_on_the_front_all_stay_and_nan_never_does() -> None:
    points = np.array([[1.0, 2], [1, 2], [2, 1], [0, 0], [np.nan, 9]])
    assert non_dominated(points).tolist() == [True, True, True, False, False]
    assert non_dominated(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_hypervolume_equals_inclusion_and_exclusion(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    points, reference = rng.normal(size=(9, dimensions)).round(1), np.full(dimensions, -0.3)
    assert hypervolume(points, reference) == pytest.approx(brute_volume(points, reference), abs=1e-9)


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_dominated_points_duplicates_and_points_below_the_reference_add_nothing(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    points, reference = rng.random((20, dimensions)), np.zeros(dimensions)
    more = np.vstack([points, points[:3], points[4:8] - 1e-3, points[:2] - 5])
    assert hypervolume(more, reference) == pytest.approx(hypervolume(points, reference), abs=1e-12)
    assert hypervolume(np.vstack([points, np.full(dimensions, 1.1)]), reference) > hypervolume(points, reference)


def test_hypervolume_of_nothing_is_zero_and_misfits_are_refused() -> None:
    assert hypervolume(np.empty((0, 2)), np.zeros(2)) == 0
    assert hypervolume(np.array([[np.nan, 5.0]]), np.zeros(2)) == 0
    with pytest.raises(ValueError, match="do not fit"):
        hypervolume(np.ones((3, 2)), np.zeros(3))


def test_hypervolumes_are_those_of_the_first_points() -> None:
    points = np.random.default_rng(0).random((30, 3))
    points[7] = np.nan
    expected = [hypervolume(points[:i + 1], np.full(3, 0.2)) for i in range(30)]
    assert hypervolumes(points, np.full(3, 0.2)) == pytest.approx(expected)
    assert (np.diff(expected) >= 0).all() and expected[-1] > 0


def test_a_thinned_front_is_sparse_and_near_every_point() -> None:
    """A coordinate of any point is at most epsilon better than that of some kept one."""
    points = np.random.default_rng(0).random((400, 2))
    for epsilon in (0.02, 0.1):
        kept = points[thinned(points, epsilon)]
        assert non_dominated(points)[thinned(points, epsilon)].all()
        assert len({tuple(b) for b in np.floor(kept / epsilon)}) == len(kept)
        assert all(((kept + epsilon) >= p).all(axis=1).any() for p in points)
    assert len(thinned(points, 1e-9)) == non_dominated(points).sum()
    with pytest.raises(ValueError, match="above 0"):
        thinned(points, 0)


def test_each_rule_selects_its_point() -> None:
    points = np.array([[0, 10], [2, 9], [6, 7], [9.5, 1], [10, 0], [1, 1], [np.nan, 99]])
    assert least_misery(points) == nash_product(points) == knee(points) == 2
    assert least_misery(np.array([[0, 10], [4, 7], [8, 3.5], [10, 0]])) == 1
    assert nash_product(np.array([[0, 10.0], [3.2, 8.5], [7, 4], [10, 0]])) == 2
    assert weighted(points, np.array([1, 0.1])) == 4 and weighted(points, np.array([0.1, 1])) == 0
    with pytest.raises(ValueError, match="all its metrics"):
        knee(points[-1:])


def test_a_rule_does_not_see_units_and_never_takes_a_dominated_point() -> None:
    points = np.random.default_rng(1).random((100, 3))
    for rule in (least_misery, nash_product, knee):
        assert rule(points) == rule(points * [1, 1000, 0.01] + 5)
        assert non_dominated(points)[rule(points)]


def test_recommended_points_are_of_the_front_spread_and_ordered_by_risk() -> None:
    angle = np.linspace(0, np.pi / 2, 50)
    points = np.vstack([np.column_stack([np.sin(angle), np.cos(angle)]), np.full((20, 2), 0.1)])
    risk = np.append(angle, np.full(20, -1.0))  # what is dominated may look safe
    chosen = recommended(points, risk, 5)
    assert len(chosen) == 5 and chosen.max() < 50
    assert (chosen[0], chosen[-1]) == (0, 49)
    assert risk[chosen] == pytest.approx(np.linspace(0, np.pi / 2, 5), abs=0.02)
    crowded = np.append(np.full(50, 0.0) + 1e-9 * np.arange(50), np.full(20, -1.0))
    crowded[49] = 1.0
    assert len(set(recommended(points, crowded, 4).tolist())) == 4


def test_few_risks_give_few_recommendations_and_the_fairer_of_equally_risky_points() -> None:
    points = np.array([[0, 10.0], [5, 5], [10, 0]])
    assert recommended(points, np.zeros(3)).tolist() == [1]
    assert recommended(points, np.array([2.0, 1.0, 2.0])).tolist() == [1, 0]
    assert recommended(np.empty((0, 2)), np.empty(0)).tolist() == []
    for broken in (np.array([1.0, np.nan, 2.0]), np.zeros(2)):
        with pytest.raises(ValueError, match="risk"):
            recommended(points, broken)
    with pytest.raises(ValueError, match="count 1"):
        recommended(points, np.zeros(3), 1)
