"""Offline metrics of scores, each over all given rows at once (never a mean over batches).

Every function takes one-dimensional arrays of one length and rows whose label is known: the caller drops
rows outside the sample space. A metric that is undefined on its rows (no rows, one class only) is NaN.

Metrics of ranked lists are classes that lay the lists out once and then evaluate any number of score vectors on
them: :class:`ListAuc`, :class:`ListConcordance`, :class:`ListNdcg`, :class:`ListMrr`, :class:`ListValue`. For a
single call there are :func:`gauc` and :func:`ndcg`. Ties in the scores count with their expected value under a
random order of the tied rows, so no metric depends on the order of the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import xlogy
from scipy.stats import rankdata

PROBABILITY_FLOOR = 1e-7
"""LogLoss clips probabilities to [floor, 1 - floor]: float32 cannot tell 1 - 3e-8 from 1."""

HIGHER_IS_BETTER = {"auc": True, "gauc": True, "logloss": False}
"""The metrics that models are chosen by."""

Kind = Literal["binary", "regression"]


# --- binary objectives ----------------------------------------------------------------------------------


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, tied pairs counted half.

    Args:
        labels: [N] of 0 and 1.
        scores: [N], higher = more likely positive.
    """
    labels, scores = _checked(labels, scores)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(scores)[labels > 0].sum()
    return float((ranks - positives * (positives + 1) / 2) / positives / negatives)


def auc_contributions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[N] values of single rows whose mean is the AUC and whose standard error is DeLong's.

    A row's value is AUC + N/n_class · (its placement among the other class - AUC): the structural components
    of DeLong, DeLong and Clarke-Pearson (Biometrics 1988) on one scale, so that resampling them, or the
    differences of two scores on the same rows, needs no further ranking. NaN if only one class is there.
    """
    labels, scores = _checked(labels, scores)
    positive = labels > 0
    n, counts = len(labels), {True: int(positive.sum()), False: int((~positive).sum())}
    if not counts[True] or not counts[False]:
        return np.full(n, np.nan)
    everywhere = rankdata(scores)
    placement = np.empty(n)
    for side in (True, False):
        rows = positive == side
        below_in_other_class = (everywhere[rows] - rankdata(scores[rows])) / counts[not side]
        placement[rows] = below_in_other_class if side else 1 - below_in_other_class
    area = placement[positive].mean()
    scale = np.where(positive, n / counts[True], n / counts[False])
    return area + scale * (placement - area)


def logloss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean binary cross-entropy in nats; NaN without rows."""
    parts = logloss_contributions(labels, scores)
    return float(np.mean(parts)) if len(parts) else float("nan")


def logloss_contributions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[N] the cross-entropy of every row, in nats."""
    labels, scores = _checked(labels, scores)
    p = np.clip(scores, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def normalised_entropy(labels: np.ndarray, scores: np.ndarray) -> float:
    """LogLoss over the entropy of the rows' own base rate: below 1 = better than predicting that rate.

    He et al., "Practical lessons from predicting clicks on ads at Facebook" (ADKDD 2014), equation 1.
    """
    labels, scores = _checked(labels, scores)
    rate = labels.mean() if len(labels) else 0.0
    entropy = -float(xlogy(rate, rate) + xlogy(1 - rate, 1 - rate))
    return logloss(labels, scores) / entropy if entropy > 0 else float("nan")


def calibration_ratio(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sum of the predictions over that of the labels: 1 = unbiased on average; NaN if the labels sum to 0."""
    labels, scores = _checked(labels, scores)
    total = labels.sum()
    return float(scores.sum() / total) if total else float("nan")


class Reliability(NamedTuple):
    """A reliability table, one entry per non-empty bin: mean prediction, mean label, rows. Each [bins]."""

    score: np.ndarray
    rate: np.ndarray
    rows: np.ndarray


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 20) -> Reliability:
    """Predictions against observed rates in bins of about equal mass; equal predictions share a bin."""
    labels, scores = _checked(labels, scores)
    if not len(labels):
        return Reliability(np.empty(0), np.empty(0), np.empty(0, np.int64))
    edges = np.quantile(scores, np.arange(1, bins) / bins)
    bin_of = np.searchsorted(edges, scores, side="right")
    count = np.bincount(bin_of, minlength=bins)
    kept = count > 0
    return Reliability(np.bincount(bin_of, scores, bins)[kept] / count[kept],
                       np.bincount(bin_of, labels, bins)[kept] / count[kept], count[kept])


def ece(labels: np.ndarray, scores: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error: |mean prediction - mean label| averaged over the bins' rows."""
    table = reliability(labels, scores, bins)
    if not len(table.rows):
        return float("nan")
    return float(np.average(np.abs(table.score - table.rate), weights=table.rows))


# --- regression objectives --------------------------------------------------------------------------------


def rmse(labels: np.ndarray, scores: np.ndarray) -> float:
    """Root mean squared error, in the label's unit."""
    labels, scores = _checked(labels, scores)
    return float(np.sqrt(np.mean((scores - labels) ** 2))) if len(labels) else float("nan")


def rmse_log(labels: np.ndarray, scores: np.ndarray) -> float:
    """RMSE of log1p: errors of long dwell times do not drown the rest. Predictions below 0 count as 0.

    NaN if a label is negative.
    """
    labels, scores = _checked(labels, scores)
    if not len(labels) or labels.min() < 0:
        return float("nan")
    return rmse(np.log1p(labels), np.log1p(np.maximum(scores, 0)))


def xauc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of the pairs with different labels that the scores put in order, tied scores counted half."""
    labels, scores = _checked(labels, scores)
    return ListConcordance(labels, np.zeros(len(labels), np.int64)).mean(scores)


# --- metrics of lists ---------------------------------------------------------------------------------------


def gauc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """AUC inside each group, averaged with the groups' row counts as weights, over groups with both classes.

    Zhu et al., "Optimized cost per click in Taobao display advertising" (KDD 2017). How much of the data
    that is: :func:`gauc_coverage`.
    """
    labels, scores = _checked(labels, scores)
    return ListAuc(labels, groups).mean(scores)


def gauc_coverage(labels: np.ndarray, groups: np.ndarray) -> float:
    """Share of the rows whose group has both classes, the rows :func:`gauc` speaks for."""
    if not len(labels):
        return float("nan")
    return float(ListAuc(labels, groups).weights.sum() / len(labels))


def ndcg(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, k: int | None = None,
         gain: Literal["exponential", "linear"] = "exponential") -> float:
    """Mean NDCG@k over the groups that have a positive gain; see :class:`ListNdcg`."""
    labels, scores = _checked(labels, scores)
    return ListNdcg(labels, groups, k, gain).mean(scores)


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
        return self._values(_rankable(scores, self._length))

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
        self._layout = _Layout(self._rows[kept], self._unit[kept], self._labels[kept] > 0)

    def _values(self, scores: np.ndarray) -> np.ndarray:
        rank_sum = np.zeros(len(self.groups))
        for found in self._layout.places(scores):
            rank = self._size[found.unit] - found.above - (found.tied - 1) / 2  # 1 = lowest score of its list
            rank_sum += np.bincount(found.unit, rank, len(rank_sum))
        area = rank_sum - self._positives * (self._positives + 1) / 2
        return np.divide(area, self._pairs, out=np.zeros_like(area), where=self._pairs > 0)


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
        self._layout = _Layout(self._rows[kept], self._unit[kept], gains[kept] != 0)

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
        self._layout = _Layout(self._rows[kept], self._unit[kept], relevant[kept])

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


class ListRanks:
    """Where every row stands in its list, for any number of score vectors.

    Attributes:
        unit: [N] index of each row's list.
        size: [U] rows of each list.
    """

    def __init__(self, groups: np.ndarray) -> None:
        _, self.unit, self.size = np.unique(groups, return_inverse=True, return_counts=True)
        rows = np.arange(len(self.unit))
        self._layout = _Layout(rows, self.unit, np.ones(len(rows), bool))

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([N], [N]): how many rows of its list score above a row, and how many equal to it, itself too.

        Raises:
            ValueError: a score is not finite, or their number is not that of the rows.
        """
        return self._layout.all_places(_rankable(scores, len(self.unit)))


class _Places(NamedTuple):
    """Where rows stand in their list: ``above`` of its rows score higher, ``tied`` equal (itself too)."""

    row: np.ndarray
    unit: np.ndarray
    above: np.ndarray
    tied: np.ndarray


class _Layout:
    """Lists as blocks of equally wide, padded matrices, and the rows of interest (the relevant ones) in them.

    In short lists a relevant row's place is counted by comparing it with its list, which is exact with ties
    and far cheaper than sorting; where many rows are relevant, all are compared at once. Long lists are sorted.

    Args:
        rows: [M] indices of the rows that belong to a list.
        unit: [M] list of each.
        wanted: bool [M], whether the row's place is asked for.
    """

    COUNT_UP_TO = 64
    MANY = 0.25
    CHUNK = 1 << 17

    def __init__(self, rows: np.ndarray, unit: np.ndarray, wanted: np.ndarray) -> None:
        order = np.argsort(unit, kind="stable")
        rows, unit, wanted = rows[order], unit[order], wanted[order]
        start = np.flatnonzero(np.r_[True, np.diff(unit) != 0][:len(unit)])
        size = np.diff(np.r_[start, len(unit)])
        octave = np.frexp(size)[1]  # lists of one block differ in length by less than a factor of two
        self._blocks = []
        for o in np.unique(octave):
            lists = np.flatnonzero(octave == o)
            column = np.arange(size[lists].max())
            inside = column < size[lists, None]
            position = np.where(inside, start[lists, None] + column, 0)
            of_list, of_column = np.nonzero(inside & wanted[position])
            wanted_rows = rows[position[of_list, of_column]]
            self._blocks.append((np.where(inside, rows[position], -1), of_list, of_column,
                                 wanted_rows, unit[start[lists]][of_list]))

    def places(self, scores: np.ndarray) -> Iterator[_Places]:
        """The places of all wanted rows under ``scores``, in parts."""
        padded = np.append(scores, -np.inf)  # the index -1 of padding lands here
        for index, of_list, of_column, row, unit in self._blocks:
            block = padded[index]
            if block.shape[1] > self.COUNT_UP_TO or len(row) > self.MANY * block.size:
                above, tied = (found[of_list, of_column].astype(np.int64) for found in self._places(block))
                yield _Places(row, unit, above, tied)
                continue
            step = self.CHUNK // block.shape[1]
            for s in (slice(i, i + step) for i in range(0, len(row), step)):
                others, own = block[of_list[s]], scores[row[s]][:, None]
                yield _Places(row[s], unit[s], np.count_nonzero(others > own, axis=1),
                              np.count_nonzero(others == own, axis=1))

    def all_places(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([N], [N]): for every row how many of its list score above it, and how many equal, itself too."""
        padded = np.append(scores, -np.inf)
        above, tied = np.empty((2, len(padded)), np.int64)
        for index, *_ in self._blocks:
            above[index], tied[index] = self._places(padded[index])
        return above[:-1], tied[:-1]

    def _places(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _places_by_sorting(block) if block.shape[1] > self.COUNT_UP_TO else _places_by_counting(block)


def _places_by_counting(block: np.ndarray, lists: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """For each entry of ``block`` [G, L]: how many of its row are larger, how many equal (itself too); L < 256.

    Many ``lists`` are compared at a time, but no more than the processor's cache holds.
    """
    above, tied = np.empty((2, *block.shape), np.uint8)
    for s in (slice(i, i + lists) for i in range(0, len(block), lists)):
        part = np.ascontiguousarray(block[s].T)
        larger, equal = np.zeros((2, *part.shape), np.uint8)
        for other in part:
            larger += other > part
            equal += other == part
        above[s], tied[s] = larger.T, equal.T
    return above, tied


def _places_by_sorting(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same; the work grows with L log L instead of L²."""
    order = np.argsort(-block, axis=1, kind="stable")
    falling = np.take_along_axis(block, order, axis=1)
    column = np.arange(block.shape[1])
    first = np.ones(block.shape, bool)
    first[:, 1:] = falling[:, 1:] != falling[:, :-1]
    last = np.ones(block.shape, bool)
    last[:, :-1] = first[:, 1:]
    begin = np.maximum.accumulate(np.where(first, column, 0), axis=1)
    end = np.minimum.accumulate(np.where(last, column, len(column))[:, ::-1], axis=1)[:, ::-1]
    above, tied = np.empty_like(begin), np.empty_like(begin)
    np.put_along_axis(above, order, begin, axis=1)
    np.put_along_axis(tied, order, end - begin + 1, axis=1)
    return above, tied


def _expected_reciprocal(above: np.ndarray, tied: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """[G] mean of 1/rank of the first of ``relevant`` rows among ``tied`` rows in random order, behind ``above``."""
    expected, none_yet = np.zeros(len(above)), np.ones(len(above))
    for place in range(int((tied - relevant).max(initial=0)) + 1):
        hit = np.minimum(relevant / np.maximum(tied - place, 1), 1)  # none_yet is 0 where the ties are used up
        expected += none_yet * hit / (above + place + 1)
        none_yet *= 1 - hit
    return expected


def _rankable(scores: np.ndarray, rows: int) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.shape != (rows,):
        raise ValueError(f"{rows} scores expected, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: NaN and infinity have no rank")
    return scores


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


# --- uncertainty --------------------------------------------------------------------------------------------


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


# --- everything of one objective --------------------------------------------------------------------------


def evaluate(kind: Kind, labels: np.ndarray, scores: np.ndarray,
             groups: np.ndarray | None = None) -> dict[str, float]:
    """The standard metrics of one objective on rows with known labels.

    Returns:
        ``binary``: auc, gauc, gauc_coverage, logloss, ne, calibration, ece; the two of groups only when
        ``groups`` is given. ``regression``: rmse, rmse_log, xauc.
    """
    if kind == "regression":
        return {"rmse": rmse(labels, scores), "rmse_log": rmse_log(labels, scores),
                "xauc": xauc(labels, scores)}
    of_lists = {} if groups is None else {"gauc": gauc(labels, scores, groups),
                                          "gauc_coverage": gauc_coverage(labels, groups)}
    return {"auc": auc(labels, scores), **of_lists, "logloss": logloss(labels, scores),
            "ne": normalised_entropy(labels, scores), "calibration": calibration_ratio(labels, scores),
            "ece": ece(labels, scores)}


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be vectors of one length")
    if np.isnan(labels).any() or np.isnan(scores).any():
        raise ValueError("labels and scores must not be NaN: drop rows whose label is unknown first")
    return labels, scores
