"""All metrics of one objective, and how they are compared."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ctrmodels.metrics.binary import auc, calibration_ratio, ece, logloss, normalised_entropy
from ctrmodels.metrics.lists import gauc, gauc_coverage
from ctrmodels.metrics.regression import rmse, rmse_log, xauc

HIGHER_IS_BETTER = {"auc": True, "gauc": True, "logloss": False}
"""The metrics that models are chosen by."""

Kind = Literal["binary", "regression"]

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
