from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ctrmodels.fusion import hypervolume, non_dominated


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
