"""Pareto fronts of points that are to be large in every coordinate."""

from __future__ import annotations

from collections.abc import Callable

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


def hypervolumes(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[P] hypervolume of the first 1, 2, …, P points [P, M]: how a search got on.

    Raises:
        ValueError: as :func:`hypervolume`.
    """
    points = np.asarray(points, np.float64)
    volumes, front = np.zeros(len(points)), np.empty((0, points.shape[-1]))
    for i, point in enumerate(points):
        grown = np.vstack([front, point])
        grown = grown[non_dominated(grown)]
        changed = len(grown) != len(front) or not np.array_equal(grown, front)
        volumes[i] = hypervolume(grown, reference) if changed or i == 0 else volumes[i - 1]
        front = grown
    return volumes


def thinned(points: np.ndarray, epsilon: float | np.ndarray) -> np.ndarray:
    """Indices of a front of ``points`` [P, M] with at most one point per box of the size ``epsilon``, ascending.

    Every point of P is at most ``epsilon`` better in any coordinate than some point that is kept: an
    ε-approximate front (Laumanns et al., Evolutionary Computation 2002) for plots and tables. A box keeps
    the point nearest to its upper corner.

    Raises:
        ValueError: ``epsilon`` is not above 0.
    """
    points = np.asarray(points, np.float64)
    if not (np.asarray(epsilon) > 0).all():
        raise ValueError(f"epsilon = {epsilon}: a size above 0 is expected")
    front = np.flatnonzero(non_dominated(points))
    boxes = np.floor(points[front] / epsilon)
    distance = np.square((boxes + 1) * epsilon - points[front]).sum(axis=1)
    kept = [min(np.flatnonzero((boxes == box).all(axis=1)), key=lambda i: distance[i])
            for box in np.unique(boxes[non_dominated(boxes)], axis=0)]
    return np.sort(front[kept])


def least_misery(points: np.ndarray) -> int:
    """The point [P, M] whose worst objective is best, each scaled to [0, 1] over the front: the fair one."""
    return _best(points, lambda shares, _: shares.min(axis=1))


def nash_product(points: np.ndarray) -> int:
    """The point with the largest product of gains over the front's worst values (Nash, Econometrica 1950)."""
    return _best(points, lambda shares, _: shares.prod(axis=1))


def knee(points: np.ndarray) -> int:
    """The point farthest above the plane through the front's extremes: beyond it, a gain costs most elsewhere."""
    return _best(points, lambda shares, _: shares.sum(axis=1))


def weighted(points: np.ndarray, weights: np.ndarray) -> int:
    """The point with the largest Σ_m weights_m · metric_m: the business says what a unit of each is worth."""
    return _best(points, lambda _, front: front @ np.asarray(weights, np.float64))


def recommended(points: np.ndarray, risk: np.ndarray, count: int = 5) -> np.ndarray:
    """Up to ``count`` points of the front to choose from, safest first.

    The safest and the boldest point of the front, and those nearest to even steps of risk between them. Of
    points of equal risk the least miserable counts.

    Args:
        points: [P, M] metrics.
        risk: [P] how far a point may reach when the prediction is wrong, such as 1 - rank correlation with the
            order in service.
        count: 3 to 5 suit a hand-over; at least 2.

    Returns:
        Indices, ascending in risk; fewer than ``count`` if the front has fewer risks.

    Raises:
        ValueError: the shapes do not fit, ``count`` < 2, or a risk on the front is NaN.
    """
    points, risk = np.asarray(points, np.float64), np.asarray(risk, np.float64)
    if points.ndim != 2 or risk.shape != points.shape[:1] or count < 2:
        raise ValueError(f"points {points.shape}, risk {risk.shape} and count {count} do not fit")
    front = np.flatnonzero(non_dominated(points))
    if np.isnan(risk[front]).any():
        raise ValueError("every point of the front needs a risk")
    fairness = _shares(points[front]).min(axis=1) if len(front) else np.empty(0)
    order = front[np.lexsort((-fairness, risk[front]))]
    _, first = np.unique(risk[order], return_index=True)
    order = order[first]
    if len(order) <= count:
        return order
    steps = np.linspace(risk[order[0]], risk[order[-1]], count)
    chosen: list[int] = []
    for i, step in enumerate(steps):  # each takes the nearest that leaves enough for the steps after it
        low, high = (chosen[-1] + 1 if chosen else 0), len(order) - (count - i)
        chosen.append(low + int(np.argmin(np.abs(risk[order[low:high + 1]] - step))))
    return order[chosen]


def _best(points: np.ndarray, merit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> int:
    """Index of the front's point with the largest merit, which sees the scaled and the plain front."""
    points = np.asarray(points, np.float64)
    front = np.flatnonzero(non_dominated(points))
    if not len(front):
        raise ValueError("no point has all its metrics")
    return int(front[np.argmax(merit(_shares(points[front]), points[front]))])


def _shares(front: np.ndarray) -> np.ndarray:
    """A front scaled to [0, 1] per objective; one that does not vary is 1 everywhere."""
    low, width = front.min(axis=0), np.ptp(front, axis=0)
    return np.where(width > 0, (front - low) / np.where(width > 0, width, 1), 1.0)
