"""What metrics are given, checked."""

from __future__ import annotations

import numpy as np


def checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N].

    Raises:
        ValueError: they are not vectors of one length, or hold NaN.
    """
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be vectors of one length")
    if np.isnan(labels).any() or np.isnan(scores).any():
        raise ValueError("labels and scores must not be NaN: drop rows whose label is unknown first")
    return labels, scores


def rankable(scores: np.ndarray, rows: int) -> np.ndarray:
    """``scores`` as float64 [``rows``].

    Raises:
        ValueError: their number is another, or one of them is not finite.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != (rows,):
        raise ValueError(f"{rows} scores expected, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: NaN and infinity have no rank")
    return scores
