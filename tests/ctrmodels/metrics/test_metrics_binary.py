"""Metrics of binary objectives against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from ctrmodels import metrics
from tests.support.lists import coarse_scores


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_sklearn_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 300), coarse_scores(rng, 300)
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_contributions_average_to_the_auc_and_spread_as_its_sampling_error(rng) -> None:
    def draw() -> tuple[np.ndarray, np.ndarray]:
        labels = (rng.random(400) < 0.3).astype(float)
        return labels, rng.normal(labels, 1.0).round(1)

    labels, scores = draw()
    parts = metrics.auc_contributions(labels, scores)
    assert parts.mean() == pytest.approx(metrics.auc(labels, scores), abs=1e-12)
    truth = np.std([metrics.auc(*draw()) for _ in range(600)])
    assert parts.std() / np.sqrt(len(parts)) == pytest.approx(truth, rel=0.15)


def test_logloss_and_normalised_entropy(rng: np.random.Generator) -> None:
    labels, scores = rng.integers(0, 2, 200), rng.random(200)
    assert metrics.logloss(labels, scores) == pytest.approx(log_loss(labels, scores), rel=1e-12)
    base = np.full(200, labels.mean())
    assert metrics.normalised_entropy(labels, base) == pytest.approx(1, abs=1e-12)
    assert metrics.normalised_entropy(labels, scores) == pytest.approx(
        log_loss(labels, scores) / log_loss(labels, base), rel=1e-12)


def test_logloss_of_a_certain_but_wrong_prediction_is_finite() -> None:
    worst = -np.log(metrics.PROBABILITY_FLOOR)
    assert metrics.logloss(np.array([1.0]), np.array([0.0])) == pytest.approx(worst)


def test_calibration_ratio_is_predicted_over_observed() -> None:
    found = metrics.calibration_ratio(np.array([1, 0, 0, 1.0]), np.array([0.9, 0.3, 0.3, 0.9]))
    assert found == pytest.approx(1.2)


def test_ece_sees_a_known_shift_and_is_small_for_true_probabilities(rng: np.random.Generator) -> None:
    p = rng.uniform(0.1, 0.8, 40_000)
    labels = (rng.random(40_000) < p).astype(float)
    assert metrics.ece(labels, p) < 0.012
    assert metrics.ece(labels, p + 0.1) == pytest.approx(0.1, abs=0.01)


def test_reliability_bins_have_equal_mass_and_equal_scores_share_a_bin(rng: np.random.Generator) -> None:
    labels, scores = rng.integers(0, 2, 1000).astype(float), rng.random(1000)
    table = metrics.reliability(labels, scores, 20)
    assert table.rows.tolist() == [50] * 20
    assert (np.diff(table.score) > 0).all()
    assert table.rows @ table.rate == pytest.approx(labels.sum())
    tied = metrics.reliability(labels, np.full(1000, 0.25), 20)
    assert tied.rows.tolist() == [1000]
    assert tied.rate[0] == pytest.approx(labels.mean())
