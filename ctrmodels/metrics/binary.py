"""Metrics of a binary objective over all rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import xlogy
from scipy.stats import rankdata

from ctrmodels.metrics.arrays import checked

PROBABILITY_FLOOR = 1e-7
"""LogLoss clips probabilities to [floor, 1 - floor]: float32 cannot tell 1 - 3e-8 from 1."""

def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, tied pairs counted half.

    Args:
        labels: [N] of 0 and 1.
        scores: [N], higher = more likely positive.
    """
    labels, scores = checked(labels, scores)
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
    labels, scores = checked(labels, scores)
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
    labels, scores = checked(labels, scores)
    p = np.clip(scores, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def normalised_entropy(labels: np.ndarray, scores: np.ndarray) -> float:
    """LogLoss over the entropy of the rows' own base rate: below 1 = better than predicting that rate.

    He et al., "Practical lessons from predicting clicks on ads at Facebook" (ADKDD 2014), equation 1.
    """
    labels, scores = checked(labels, scores)
    rate = labels.mean() if len(labels) else 0.0
    entropy = -float(xlogy(rate, rate) + xlogy(1 - rate, 1 - rate))
    return logloss(labels, scores) / entropy if entropy > 0 else float("nan")


def calibration_ratio(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sum of the predictions over that of the labels: 1 = unbiased on average; NaN if the labels sum to 0."""
    labels, scores = checked(labels, scores)
    total = labels.sum()
    return float(scores.sum() / total) if total else float("nan")


class Reliability(NamedTuple):
    """A reliability table, one entry per non-empty bin: mean prediction, mean label, rows. Each [bins]."""

    score: np.ndarray
    rate: np.ndarray
    rows: np.ndarray


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 20) -> Reliability:
    """Predictions against observed rates in bins of about equal mass; equal predictions share a bin."""
    labels, scores = checked(labels, scores)
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
