from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import kendalltau

from ctrmodels import metrics
from ctrmodels.fusion import Isotonic, Normaliser, Platt, Quantile
from ctrmodels.fusion.normalisers import normaliser_from_json


def miscalibrated(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True probabilities, labels, and scores that are over-confident and shifted in log-odds."""
    p = expit(rng.normal(-1.5, 1, n))
    return p, (rng.random(n) < p).astype(float), expit(1.8 * logit(p) + 0.7)


@pytest.fixture(scope="module")
def window() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return miscalibrated(np.random.default_rng(0), 20_000)


def test_platt_finds_the_inverse_of_a_shift_and_slope_in_log_odds(window) -> None:
    _, labels, scores = window
    found = Platt.fit(scores, labels)
    assert found.slope == pytest.approx(1 / 1.8, rel=0.05)
    assert found.intercept == pytest.approx(-0.7 / 1.8, abs=0.08)


@pytest.mark.parametrize("kind", [Platt, Isotonic])
def test_calibration_holds_on_rows_it_was_not_fitted_on(window, kind: type[Normaliser]) -> None:
    _, labels, scores = window
    _, fresh_labels, fresh_scores = miscalibrated(np.random.default_rng(1), 20_000)
    calibrated = kind.fit(scores, labels)(fresh_scores)
    assert metrics.ece(fresh_labels, fresh_scores) > 0.06
    assert metrics.ece(fresh_labels, calibrated) < 0.02
    assert metrics.calibration_ratio(fresh_labels, calibrated) == pytest.approx(1, abs=0.05)


def test_isotonic_mends_a_shape_that_platt_cannot() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(20_000)
    labels = (rng.random(20_000) < np.where(scores < 0.5, 0.1, 0.6)).astype(float)
    assert metrics.ece(labels, Isotonic.fit(scores, labels)(scores)) < 0.01
    assert metrics.ece(labels, Platt.fit(scores, labels)(scores)) > 0.05


@pytest.mark.parametrize("kind", [Platt, Isotonic])
def test_calibration_changes_no_order_and_ties_nothing(window, kind: type[Normaliser]) -> None:
    _, labels, scores = window
    calibrated = kind.fit(scores, labels)(np.sort(np.unique(scores)))
    assert (np.diff(calibrated) > 0).all()
    assert calibrated[0] >= 0 and calibrated[-1] <= 1


def test_platt_keeps_the_order_even_of_scores_that_are_worse_than_chance(window) -> None:
    _, labels, scores = window
    found = Platt.fit(1 - scores, labels)
    assert found.slope == Platt.SMALLEST_SLOPE
    assert (np.diff(found(np.linspace(0.01, 0.99, 50))) > 0).all()


def test_platt_is_finite_on_separable_rows_and_at_the_ends() -> None:
    found = Platt.fit(np.array([0.0, 0.1, 0.9, 1.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([found.slope, found.intercept]).all()
    assert np.isfinite(found(np.array([0.0, 1.0]))).all()


def test_quantile_spreads_amounts_evenly_whatever_their_tail() -> None:
    seconds = np.random.default_rng(4).lognormal(3, 2, 5000)
    ranks = Quantile.fit(seconds, seconds)(seconds)
    assert np.histogram(ranks, 10, (0, 1))[0] == pytest.approx(np.full(10, 500), rel=0.1)
    assert kendalltau(ranks, seconds).statistic > 0.995
    assert ranks.min() == Quantile.MARGIN and ranks.max() == pytest.approx(1 - Quantile.MARGIN)


def test_quantile_gives_a_frequent_amount_the_middle_of_its_ranks() -> None:
    amounts = np.r_[np.zeros(800), np.arange(1, 201)]
    assert Quantile.fit(amounts, amounts)(np.zeros(1))[0] == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("kind", [Platt, Isotonic, Quantile])
def test_json_carries_a_fit_exactly(window, kind: type[Normaliser]) -> None:
    _, labels, scores = window
    fitted = kind.fit(scores, labels)
    again = normaliser_from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    assert np.array_equal(again(scores), fitted(scores))


def test_what_cannot_be_fitted_or_read_is_refused() -> None:
    for kind in (Platt, Isotonic):
        for label in (0, 1):
            with pytest.raises(ValueError, match="both classes"):
                kind.fit(np.array([0.1, 0.2]), np.full(2, label))
    with pytest.raises(ValueError, match="same on every row"):
        Quantile.fit(np.full(5, 3.0), np.zeros(5))
    with pytest.raises(ValueError, match="unknown normaliser 'softmax'"):
        normaliser_from_json({"kind": "softmax"})
