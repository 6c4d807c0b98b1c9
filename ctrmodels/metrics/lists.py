"""What metrics of ranked lists share, and the AUC of lists."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ctrmodels.metrics.arrays import checked, rankable
from ctrmodels.metrics.binary import auc_contributions
from ctrmodels.metrics.places import Layout


class ListMetric(ABC):
    """A metric of one objective over the lists that ``groups`` cuts the rows into.

    Built once per data set, then called for as many score vectors as a search tries. Rows whose label is
    NaN (unknown) are left out of their list, as if they had not been shown.

    Attributes:
        groups: [U] the distinct groups, ascending; list u is the rows of ``groups[u]``.
        weights: float [U], weight of each list in the mean; 0 where the metric is undefined on the list.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        labels = np.asarray(labels, np.float64)
        groups = np.asarray(groups)
        if labels.ndim != 1 or labels.shape != groups.shape:
            raise ValueError(f"labels {labels.shape} and groups {groups.shape} must be vectors of one length")
        self.groups, unit = np.unique(groups, return_inverse=True)
        self._rows = np.flatnonzero(~np.isnan(labels))
        self._length = len(labels)
        self._labels, self._unit = labels[self._rows], unit[self._rows]
        self.weights = np.zeros(len(self.groups))

    def values(self, scores: np.ndarray) -> np.ndarray:
        """[U] the metric of each list under ``scores`` [N]; 0 where its weight is 0.

        Raises:
            ValueError: a score is not finite, or their number is not that of the rows.
        """
        return self._values(rankable(scores, self._length))

    def average(self, values: np.ndarray) -> float:
        """Weighted mean of ``values`` [U] over the lists; NaN if the metric is undefined on all of them."""
        total = self.weights.sum()
        return float(values @ self.weights / total) if total else float("nan")

    def mean(self, scores: np.ndarray) -> float:
        """The metric of ``scores`` [N]: :meth:`average` of its :meth:`values`."""
        return self.average(self.values(scores))

    @abstractmethod
    def _values(self, scores: np.ndarray) -> np.ndarray: ...


class ListAuc(ListMetric):
    """AUC of a binary objective inside each list; weight = rows of the list if it has both classes."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        super().__init__(labels, groups)
        lists = len(self.groups)
        size = np.bincount(self._unit, minlength=lists)
        self._positives = np.bincount(self._unit, self._labels > 0, lists)
        self._pairs = self._positives * (size - self._positives)
        self._size = size
        self.weights = np.where(self._pairs > 0, size, 0).astype(np.float64)
        kept = self._pairs[self._unit] > 0
        self._layout = Layout(self._rows[kept], self._unit[kept], self._labels[kept] > 0)

    def _values(self, scores: np.ndarray) -> np.ndarray:
        rank_sum = np.zeros(len(self.groups))
        for found in self._layout.places(scores):
            rank = self._size[found.unit] - found.above - (found.tied - 1) / 2  # 1 = lowest score of its list
            rank_sum += np.bincount(found.unit, rank, len(rank_sum))
        area = rank_sum - self._positives * (self._positives + 1) / 2
        return np.divide(area, self._pairs, out=np.zeros_like(area), where=self._pairs > 0)


class RowAuc(ListMetric):
    """AUC of a binary objective over all rows, for logs without lists: every row is a unit of its own.

    ``values`` are :func:`auc_contributions`, whose mean is the AUC.
    """

    def __init__(self, labels: np.ndarray) -> None:
        super().__init__(labels, np.arange(len(labels)))
        if 0 < (self._labels > 0).sum() < len(self._labels):
            self.weights[self._rows] = 1

    def _values(self, scores: np.ndarray) -> np.ndarray:
        values = np.zeros(self._length)
        if self.weights.any():
            values[self._rows] = auc_contributions(self._labels, scores[self._rows])
        return values


def gauc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """AUC inside each group, averaged with the groups' row counts as weights, over groups with both classes.

    Zhu et al., "Optimized cost per click in Taobao display advertising" (KDD 2017). How much of the data
    that is: :func:`gauc_coverage`.
    """
    labels, scores = checked(labels, scores)
    return ListAuc(labels, groups).mean(scores)


def gauc_coverage(labels: np.ndarray, groups: np.ndarray) -> float:
    """Share of the rows whose group has both classes, the rows :func:`gauc` speaks for."""
    if not len(labels):
        return float("nan")
    return float(ListAuc(labels, groups).weights.sum() / len(labels))
