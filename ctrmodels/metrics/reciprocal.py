"""The reciprocal rank of the first relevant row of lists."""

from __future__ import annotations

import numpy as np

from ctrmodels.metrics.lists import ListMetric
from ctrmodels.metrics.places import Layout


class ListMrr(ListMetric):
    """Reciprocal rank of the first relevant row of each list, whose mean is the MRR (Voorhees, TREC-8 1999).

    Weight 1 for lists with a relevant row (label > 0), others are skipped. A list of one relevant row is 1
    under every order.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        super().__init__(labels, groups)
        relevant = self._labels > 0
        self.weights = (np.bincount(self._unit, relevant, len(self.groups)) > 0).astype(np.float64)
        kept = self.weights[self._unit] > 0
        self._layout = Layout(self._rows[kept], self._unit[kept], relevant[kept])

    def _values(self, scores: np.ndarray) -> np.ndarray:
        parts = list(self._layout.places(scores))
        if not parts:
            return np.zeros(len(self.groups))
        unit, above, tied = (np.concatenate([getattr(p, name) for p in parts]) for name in ("unit", "above", "tied"))
        first = np.full(len(self.groups), np.iinfo(np.int64).max)
        np.minimum.at(first, unit, above)
        best = above == first[unit]
        tie = np.ones(len(self.groups), np.int64)
        tie[unit[best]] = tied[best]
        relevant = np.bincount(unit[best], minlength=len(self.groups))
        values = np.zeros(len(self.groups))
        lists = np.flatnonzero(relevant)
        values[lists] = _expected_reciprocal(first[lists], tie[lists], relevant[lists])
        return values


def _expected_reciprocal(above: np.ndarray, tied: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """[G] mean of 1/rank of the first of ``relevant`` rows among ``tied`` rows in random order, behind ``above``."""
    expected, none_yet = np.zeros(len(above)), np.ones(len(above))
    for place in range(int((tied - relevant).max(initial=0)) + 1):
        hit = np.minimum(relevant / np.maximum(tied - place, 1), 1)  # none_yet is 0 where the ties are used up
        expected += none_yet * hit / (above + place + 1)
        none_yet *= 1 - hit
    return expected
