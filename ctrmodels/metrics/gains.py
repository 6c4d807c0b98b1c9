"""What the first rows of lists are worth: NDCG and value per exposure."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ctrmodels.metrics.arrays import checked
from ctrmodels.metrics.lists import ListMetric
from ctrmodels.metrics.places import Layout


class _ListDcg(ListMetric):
    """Σ_{rank ≤ k} gain · discount of each list, over a ``norm`` that its subclasses set.

    Tied rows share the discounts of their ranks, which is the expectation over their orders (McSherry and
    Najork, ECIR 2008).
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray, k: int | None, logarithmic: bool) -> None:
        super().__init__(labels, groups)
        if k is not None and k < 1:
            raise ValueError(f"k = {k}: at least 1")
        self._sizes = np.bincount(self._unit, minlength=len(self.groups))
        ranks = np.arange(self._sizes.max(initial=0))
        self._discounts = 1 / np.log2(ranks + 2) if logarithmic else np.ones(len(ranks))
        if k is not None:
            self._discounts[k:] = 0
        self._cumulative = np.concatenate([[0.0], np.cumsum(self._discounts)])

    def _lay_out(self, gains: np.ndarray, norm: np.ndarray) -> None:
        """Set the ``gains`` of the rows with a known label and each list's ``norm`` [U]; 0 = undefined."""
        self._norm = norm
        kept = norm[self._unit] > 0
        self._gains = np.zeros(self._length)
        self._gains[self._rows] = gains
        self._layout = Layout(self._rows[kept], self._unit[kept], gains[kept] != 0)

    def _values(self, scores: np.ndarray) -> np.ndarray:
        dcg = np.zeros(len(self.groups))
        for found in self._layout.places(scores):
            shared = self._cumulative[found.above + found.tied] - self._cumulative[found.above]
            dcg += np.bincount(found.unit, self._gains[found.row] * shared / found.tied, len(dcg))
        return np.divide(dcg, self._norm, out=np.zeros_like(dcg), where=self._norm > 0)


class ListNdcg(_ListDcg):
    """NDCG@k inside each list; weight 1 for lists with a positive gain, others are skipped.

    DCG@k = Σ_{rank ≤ k} gain / log2(rank + 1), over that of the ideal order (Järvelin and Kekäläinen, TOIS
    2002; Burges et al. 2005 for the gain 2^label - 1). A list of one relevant row is 1 under every order.

    Args:
        labels: [N] graded relevance; 0 and 1 for a binary objective.
        groups: [N] list of each row.
        k: cut-off; ``None`` = the whole list.
        gain: ``exponential`` 2^label - 1, or ``linear``, for labels that are amounts (seconds, money).

    Raises:
        ValueError: a label is negative, or k < 1.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray, k: int | None = None,
                 gain: Literal["exponential", "linear"] = "exponential") -> None:
        super().__init__(labels, groups, k, logarithmic=True)
        if (self._labels < 0).any():
            raise ValueError("NDCG is defined for labels >= 0")
        gains = np.exp2(self._labels) - 1 if gain == "exponential" else self._labels
        best_first = np.lexsort((-gains, self._unit))
        unit = self._unit[best_first]
        rank = np.arange(len(unit)) - np.searchsorted(unit, unit)
        ideal = np.bincount(unit, gains[best_first] * self._discounts[rank], len(self.groups))
        self.weights = (ideal > 0).astype(np.float64)
        self._lay_out(gains, ideal)


class ListValue(_ListDcg):
    """Value per exposure: what the first k rows of each list brought, per row shown.

    Σ_{rank ≤ k} discount(rank) · value over Σ_{rank ≤ min(k, rows)} discount(rank), which is also the list's
    weight: :meth:`mean` is all value over all exposures, and is linear in the values, so the sum of several
    objectives' is that of the summed values. On logged rows it favours the order the log was shown in, whose
    first positions were looked at more; :mod:`ctrmodels.fusion.offpolicy` corrects that.

    Args:
        values: [N] worth of what happened, such as Σ_objectives price · label; may be negative.
        groups: [N] list of each row.
        k: cut-off, the length of a screen; ``None`` = the whole list, which no order changes unless discounted.
        discount: ``none``, every exposure counts the same, or ``log``, 1 / log2(rank + 1).

    Raises:
        ValueError: k < 1.
    """

    def __init__(self, values: np.ndarray, groups: np.ndarray, k: int | None = None,
                 discount: Literal["none", "log"] = "none") -> None:
        super().__init__(values, groups, k, logarithmic=discount == "log")
        self.weights = self._cumulative[self._sizes]
        self._lay_out(self._labels, self.weights)


def ndcg(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, k: int | None = None,
         gain: Literal["exponential", "linear"] = "exponential") -> float:
    """Mean NDCG@k over the groups that have a positive gain; see :class:`ListNdcg`."""
    labels, scores = checked(labels, scores)
    return ListNdcg(labels, groups, k, gain).mean(scores)
