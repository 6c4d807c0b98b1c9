"""Metrics of regression objectives against every pair and SciPy."""

import numpy as np
import pytest
from scipy.stats import somersd

from ctrmodels import metrics
from tests.support.lists import brute_share, coarse_scores


def test_rmse_and_rmse_log() -> None:
    labels, scores = np.array([0.0, 3.0]), np.array([-1.0, 5.0])
    assert metrics.rmse(labels, scores) == pytest.approx(np.sqrt(2.5))
    assert metrics.rmse_log(labels, scores) == pytest.approx(np.log(6 / 4) / np.sqrt(2))
    assert np.isnan(metrics.rmse_log(np.array([-1.0, 2.0]), scores))


@pytest.mark.parametrize("n", [2, 3, 17, 64, 200])
def test_xauc_equals_every_pair_and_somers_d(n: int) -> None:
    rng = np.random.default_rng(n)
    labels, scores = rng.integers(0, 9, n).astype(float), coarse_scores(rng, n)
    labels[:2] = 0, 1
    found = metrics.xauc(labels, scores)
    assert found == pytest.approx(brute_share(labels, scores), abs=1e-12)
    assert found == pytest.approx((1 + somersd(labels, scores).statistic) / 2, abs=1e-12)


def test_xauc_on_binary_labels_is_the_auc(rng: np.random.Generator) -> None:
    labels, scores = rng.integers(0, 2, 500).astype(float), coarse_scores(rng, 500)
    assert metrics.xauc(labels, scores) == pytest.approx(metrics.auc(labels, scores), abs=1e-12)
