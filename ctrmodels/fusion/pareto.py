"""Pareto fronts of points that are to be large in every coordinate."""

from __future__ import annotations

import numpy as np


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Which of ``points`` [P, M] no other point dominates, as bool [P].

    A point dominates another if it is at least as large everywhere and larger somewhere. Equal points do not
    dominate each other: duplicates are all kept. A point with a NaN is never on the front and dominates none.
    """
    points = np.asarray(points, np.float64)
    kept = np.zeros(len(points), bool)
    known = np.flatnonzero(~np.isnan(points).any(axis=1))
    unique, of = np.unique(points[known], axis=0, return_inverse=True)
    # From the lexicographically largest down, a point can only be dominated by one that came before it.
    front: list[int] = []
    for i in range(len(unique) - 1, -1, -1):
        if not (unique[front] >= unique[i]).all(axis=1).any():
            front.append(i)
    kept[known] = np.isin(of, front)
    return kept


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume of the space between ``reference`` [M] and the points [P, M] that dominate it, exactly.

    A sweep over the last coordinate cuts the space into slabs, each as thick as two neighbouring points are
    apart and with the hypervolume of the points above it as its base: O(P log P) for M = 2 and a factor P
    more for each further dimension.

    Raises:
        ValueError: the shapes do not fit, or M = 0.
    """
    points, reference = np.asarray(points, np.float64), np.asarray(reference, np.float64)
    if points.ndim != 2 or reference.shape != points.shape[1:] or not len(reference):
        raise ValueError(f"points {points.shape} and reference {reference.shape} do not fit")
    inside = points[(points > reference).all(axis=1)]
    return _volume(inside[non_dominated(inside)] - reference)


def _volume(points: np.ndarray) -> float:
    """Hypervolume of points that are positive everywhere, against the origin."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1], kind="stable")]
    thickness = points[:, -1] - np.append(points[1:, -1], 0.0)
    if points.shape[1] == 2:
        return float(np.maximum.accumulate(points[:, 0]) @ thickness)
    return float(sum(t * _volume(points[:i + 1, :-1]) for i, t in enumerate(thickness) if t > 0))
