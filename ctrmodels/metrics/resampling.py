"""How far an estimate may be trusted: resampled groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with its standard error and the bounds of its confidence interval."""

    mean: float
    error: float
    low: float
    high: float


class Bootstrap:
    """Resamples of U independent units (groups: a user's rows stay together), the same for every metric.

    All means are taken over the same resamples, so the difference of two is paired. More than ``BAGS`` units
    are first dealt at random into that many bags, which are then resampled: the sum over a bag is itself
    an independent unit, and the cost no longer grows with replicates times units.

    Args:
        units: U.
        replicates: number of resamples R.
        seed: of the draw.
    """

    BAGS = 4096

    def __init__(self, units: int, replicates: int = 1000, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.units = units
        bags = min(units, self.BAGS)
        self._bag = np.arange(units) if units == bags else rng.permutation(units) % bags
        self._counts = np.zeros((replicates, bags))
        for row in self._counts:
            row += np.bincount(rng.integers(0, bags, bags), minlength=bags) if bags else 0

    def means(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """[R] weighted mean of ``values`` [U] in each resample.

        NaN where a resample's weights are all 0, and everywhere if there are fewer than two units: one unit
        says nothing of the spread.
        """
        weights = np.ones(self.units) if weights is None else np.asarray(weights, np.float64)
        values = np.where(weights > 0, values, 0.0)
        bags = self._counts.shape[1]
        total = self._counts @ np.bincount(self._bag, weights * values, bags)
        weight = self._counts @ np.bincount(self._bag, weights, bags)
        defined = (weight > 0) & (self.units > 1)
        return np.divide(total, weight, out=np.full(len(total), np.nan), where=defined)


def interval(mean: float, resampled: np.ndarray, level: float = 0.95) -> Interval:
    """Standard error and percentile interval from resampled means; NaN if fewer than two are defined."""
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < 2:
        return Interval(mean, float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(defined.std(ddof=1)), float(low), float(high))


def bootstrap_interval(values: np.ndarray, groups: np.ndarray, level: float = 0.95, replicates: int = 1000,
                       seed: int = 0) -> Interval:
    """The mean of row-wise ``values`` [N] with its interval when whole ``groups`` [N] are resampled.

    Works for every metric that is a mean over rows, and for the AUC by :func:`auc_contributions`.
    """
    _, unit, rows = np.unique(groups, return_inverse=True, return_counts=True)
    per_group = np.bincount(unit, values, len(rows)) / rows
    sample = Bootstrap(len(rows), replicates, seed).means(per_group, rows)
    return interval(float(np.mean(values)) if len(values) else float("nan"), sample, level)
