"""Pairs of lists that are in order, of graded and continuous labels."""

from __future__ import annotations

import numpy as np

from ctrmodels.metrics.lists import ListMetric


class ListConcordance(ListMetric):
    """Share of concordant pairs (XAUC) of a graded or continuous objective inside each list.

    Pairs with equal labels do not count, pairs with equal scores count half; on labels 0 and 1 this is the
    AUC. Weight = rows of the list if it has two different labels.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        super().__init__(labels, groups)
        size = np.bincount(self._unit, minlength=len(self.groups))
        self._order = np.lexsort((self._labels, self._unit))
        unit, label = self._unit[self._order], self._labels[self._order]
        self._pairs = _pairs(size) - self._tied_pairs(unit, label)
        self.weights = np.where(self._pairs > 0, size, 0).astype(np.float64)
        changed = np.r_[False, (np.diff(unit) != 0) | (np.diff(label) != 0)][:len(unit)]
        self._label_rank = np.empty(len(unit), np.int64)
        self._label_rank[self._order] = np.cumsum(changed)  # rises with the list, then with the label

    def _values(self, scores: np.ndarray) -> np.ndarray:
        score = scores[self._rows]
        order = np.lexsort((self._label_rank, score, self._unit))
        unit, score, label = self._unit[order], score[order], self._label_rank[order]
        # Tied scores stand in the order of their labels: an inversion is a pair that is truly out of order.
        wrong = np.bincount(unit, _larger_before(label), len(self.groups))
        tied = self._tied_pairs(unit, score) - self._tied_pairs(unit, score, label)
        return np.divide(self._pairs - wrong - tied / 2, self._pairs,
                         out=np.zeros(len(self.groups)), where=self._pairs > 0)

    def _tied_pairs(self, unit: np.ndarray, *columns: np.ndarray) -> np.ndarray:
        """[U] pairs of a list that are equal in all ``columns``; such rows stand next to each other."""
        if not len(unit):
            return np.zeros(len(self.groups))
        changed = np.any([np.diff(c) != 0 for c in (unit, *columns)], axis=0)
        start = np.flatnonzero(np.r_[True, changed])
        return np.bincount(unit[start], _pairs(np.diff(np.r_[start, len(unit)])), len(self.groups))


def _pairs(n: np.ndarray) -> np.ndarray:
    return n * (n - 1) // 2


def _larger_before(values: np.ndarray) -> np.ndarray:
    """For each of ``values`` int [N] ≥ 0: how many of the earlier ones are larger. Bottom-up merge sort."""
    values = values.copy()
    n = len(values)
    found, index, place = np.zeros(n, np.int64), np.arange(n), np.arange(n)
    span = int(values.max(initial=0)) + 1
    width = 1
    while width < n:
        block, right = place // (2 * width), place // width % 2 == 1
        key = block * span + values  # both halves of each block are sorted
        not_larger = np.searchsorted(key[~right], key[right], side="right")
        found[index[right]] += (block[right] + 1) * width - not_larger
        order = np.argsort(key, kind="stable")
        values, index = values[order], index[order]
        width *= 2
    return found
