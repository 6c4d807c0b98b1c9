"""Every metric where it is undefined, what it refuses, and the summary of an objective."""

import numpy as np
import pytest

from ctrmodels import metrics
from ctrmodels.metrics import ListAuc, ListNdcg


def test_one_class_or_no_rows_give_nan() -> None:
    ones, scores, groups, empty = np.ones(3), np.array([0.1, 0.2, 0.3]), np.zeros(3, int), np.empty(0)
    one_class = (metrics.auc(ones, scores), metrics.gauc(ones, scores, groups), metrics.xauc(ones, scores),
                 metrics.normalised_entropy(ones, scores), metrics.calibration_ratio(0 * ones, scores),
                 metrics.ndcg(0 * ones, scores, groups))
    no_rows = [m(empty, empty) for m in (metrics.auc, metrics.logloss, metrics.ece, metrics.rmse,
                                         metrics.rmse_log, metrics.xauc, metrics.gauc_coverage)]
    no_lists = metrics.gauc(empty, empty, empty), metrics.ndcg(empty, empty, empty)
    assert np.isnan([*one_class, *no_rows, *no_lists]).all()
    assert np.isnan(metrics.auc_contributions(ones, scores)).all()
    assert metrics.gauc_coverage(ones, groups) == 0


def test_nan_infinite_or_misshapen_input_is_refused() -> None:
    labels, scores, groups = np.array([1.0, 0]), np.array([0.2, 0.1]), np.zeros(2, int)
    with pytest.raises(ValueError, match="NaN"):
        metrics.auc(np.array([1.0, np.nan]), scores)
    with pytest.raises(ValueError, match="length"):
        metrics.auc(labels, scores[:1])
    with pytest.raises(ValueError, match="finite"):
        ListAuc(labels, groups).mean(np.array([0.1, np.inf]))
    with pytest.raises(ValueError, match="2 scores"):
        ListAuc(labels, groups).mean(scores[:1])
    with pytest.raises(ValueError, match=">= 0"):
        ListNdcg(-labels, groups)
    with pytest.raises(ValueError, match="at least 1"):
        ListNdcg(labels, groups, 0)


def test_evaluate_names_the_metrics_of_each_kind(rng: np.random.Generator) -> None:
    labels, scores, groups = rng.integers(0, 2, 50).astype(float), rng.random(50), rng.integers(0, 5, 50)
    assert set(metrics.evaluate("binary", labels, scores, groups)) == {
        "auc", "gauc", "gauc_coverage", "logloss", "ne", "calibration", "ece"}
    assert "gauc" not in metrics.evaluate("binary", labels, scores)
    assert set(metrics.evaluate("regression", labels, scores, groups)) == {"rmse", "rmse_log", "xauc"}
