from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import kendalltau

from ctrmodels import metrics
from ctrmodels.fusion import Bounded, Isotonic, Normaliser, Platt, Quantile
from ctrmodels.fusion.normalisers import normaliser_from_json, rank_in_list


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


def test_a_known_amount_keeps_its_unit_and_the_bounds_of_its_window() -> None:
    found = Bounded.fit(np.array([3.0, 60.0, 12.5]), np.zeros(3))
    assert found(np.array([12.5, 0.0, -7.0, 1e9, 60.0])).tolist() == [12.5, 3.0, 3.0, 60.0, 60.0]


@pytest.mark.parametrize("kind", [Platt, Isotonic, Quantile, Bounded])
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


@pytest.mark.parametrize("kind", [Platt, Isotonic, Quantile, Bounded])
@pytest.mark.parametrize("scores", [np.full(3, 0.3), np.array([0.1, np.nan, 0.3]), np.array([0.1, 1, np.inf]),
                                    np.empty(0)],
                         ids=["constant", "nan", "infinite", "none"])
def test_scores_that_order_nothing_or_are_no_numbers_are_refused(kind: type[Normaliser], scores: np.ndarray) -> None:
    labels = np.arange(len(scores)) % 2
    with pytest.raises(ValueError, match=r"same on every row|finite"):
        kind.fit(scores, labels)


def test_a_fitted_map_refuses_scores_that_are_no_numbers_and_a_fit_unknown_labels(window) -> None:
    _, labels, scores = window
    for kind in (Platt, Isotonic, Quantile):
        with pytest.raises(ValueError, match="finite"):
            kind.fit(scores, labels)(np.array([0.1, np.nan]))
        with pytest.raises(ValueError, match="labels must not be NaN"):
            kind.fit(scores[:3], np.array([0, 1, np.nan]))


# --- down-sampled negatives


def kept_negatives(rate: float, seed: int, n: int = 200_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True probabilities, labels, and which rows a log that keeps a share ``rate`` of the negatives has."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(-3, 1, n))
    labels = (rng.random(n) < p).astype(float)
    return p, labels, (labels > 0) | (rng.random(n) < rate)


def test_the_probability_of_a_model_of_sampled_rows_is_brought_back_exactly() -> None:
    p = np.array([0.001, 0.02, 0.3, 0.9])
    rate = 0.05
    q = p / (p + rate * (1 - p))  # Bayes on the kept rows
    assert Platt.of_sampling(rate)(q) == pytest.approx(p, rel=1e-12)
    assert Platt.of_sampling(rate)(q) == pytest.approx(q / (q + (1 - q) / rate), rel=1e-12)
    assert Platt.of_sampling(1.0)(p) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("kind", [Platt, Isotonic])
def test_a_calibration_fitted_on_sampled_rows_is_right_for_all_rows(kind: type[Normaliser]) -> None:
    rate = 0.1
    p, labels, kept = kept_negatives(rate, seed=5)
    q = p / (p + rate * (1 - p))
    told, untold = kind.fit(q[kept], labels[kept], rate), kind.fit(q[kept], labels[kept])
    fresh_p, fresh, _ = kept_negatives(rate, seed=6)
    fresh_q = fresh_p / (fresh_p + rate * (1 - fresh_p))
    assert metrics.calibration_ratio(fresh, told(fresh_q)) == pytest.approx(1, abs=0.05)
    assert metrics.ece(fresh, told(fresh_q)) < 0.004
    assert metrics.calibration_ratio(fresh, untold(fresh_q)) > 3
    whole = kind.fit(q, labels)  # with all negatives there, the calibration sees the true rate by itself
    assert metrics.calibration_ratio(fresh, whole(fresh_q)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5, np.nan])
def test_a_sampling_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Platt.of_sampling(rate)
    with pytest.raises(ValueError, match="rate"):
        Isotonic.fit(np.array([0.1, 0.2]), np.array([0, 1]), rate)


# --- ranks


def test_rank_in_list_is_the_share_of_the_list_that_a_row_outranks() -> None:
    groups = np.array([7, 7, 7, 7, 2, 5, 5])
    scores = np.array([3.0, 9, -1, 3, 8, 1e9, 2])
    assert rank_in_list(scores, groups).tolist() == [0.5, 0.875, 0.125, 0.5, 0.5, 0.75, 0.25]


def test_rank_in_list_forgets_all_but_the_order_and_averages_a_half() -> None:
    rng = np.random.default_rng(8)
    groups, scores = rng.integers(0, 90, 1000), rng.integers(0, 9, 1000) / 3
    ranks = rank_in_list(scores, groups)
    offset = rng.normal(0, 50, 90)[groups]
    assert np.array_equal(rank_in_list(np.exp(scores) + offset.round(), groups), ranks)
    means = np.bincount(groups, ranks) / np.bincount(groups)
    assert means == pytest.approx(np.full(90, 0.5))
    with pytest.raises(ValueError, match="finite"):
        rank_in_list(np.array([0.1, np.nan]), np.zeros(2))
