"""Metrics of a regression objective over all rows."""

from __future__ import annotations

import numpy as np

from ctrmodels.metrics.arrays import checked
from ctrmodels.metrics.concordance import ListConcordance


def rmse(labels: np.ndarray, scores: np.ndarray) -> float:
    """Root mean squared error, in the label's unit."""
    labels, scores = checked(labels, scores)
    return float(np.sqrt(np.mean((scores - labels) ** 2))) if len(labels) else float("nan")


def rmse_log(labels: np.ndarray, scores: np.ndarray) -> float:
    """RMSE of log1p: errors of long dwell times do not drown the rest. Predictions below 0 count as 0.

    NaN if a label is negative.
    """
    labels, scores = checked(labels, scores)
    if not len(labels) or labels.min() < 0:
        return float("nan")
    return rmse(np.log1p(labels), np.log1p(np.maximum(scores, 0)))


def xauc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of the pairs with different labels that the scores put in order, tied scores counted half."""
    labels, scores = checked(labels, scores)
    return ListConcordance(labels, np.zeros(len(labels), np.int64)).mean(scores)
