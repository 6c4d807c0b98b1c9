"""Errors and intervals against what resampled units have to give."""

import numpy as np
import pytest

from ctrmodels import metrics
from ctrmodels.metrics import Bootstrap


def test_bootstrap_error_is_that_of_the_weighted_mean(rng: np.random.Generator) -> None:
    values, weights = rng.random(3000), rng.integers(0, 4, 3000).astype(float)
    mean = np.average(values, weights=weights)
    theory = np.sqrt((weights**2 * (values - mean) ** 2).sum()) / weights.sum()
    found = metrics.interval(mean, Bootstrap(3000, 1000, seed=1).means(values, weights))
    assert found.error == pytest.approx(theory, rel=0.1)
    assert found.low == pytest.approx(mean - 1.96 * theory, abs=theory / 4)
    assert found.high == pytest.approx(mean + 1.96 * theory, abs=theory / 4)


def test_bootstrap_of_two_metrics_is_paired_and_reproducible(rng: np.random.Generator) -> None:
    values = rng.random(500)
    sample = Bootstrap(500, 200, seed=3)
    assert np.allclose(sample.means(values + 0.25) - sample.means(values), 0.25, atol=1e-12)
    assert np.array_equal(Bootstrap(500, 200, seed=3).means(values), sample.means(values))


def test_dealing_many_units_into_bags_keeps_the_error(rng: np.random.Generator) -> None:
    values = rng.random(20_000)
    assert Bootstrap.BAGS < 20_000
    found = metrics.interval(values.mean(), Bootstrap(20_000, 1000, seed=2).means(values))
    assert found.error == pytest.approx(values.std() / np.sqrt(20_000), rel=0.1)


def test_interval_over_groups_is_wider_when_rows_of_a_group_are_alike(rng: np.random.Generator) -> None:
    groups = np.repeat(np.arange(200), 10)
    values = np.repeat(rng.random(200), 10)
    found = metrics.bootstrap_interval(values, groups)
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std() / np.sqrt(200), rel=0.1)
    assert metrics.bootstrap_interval(values, np.arange(2000)).error < found.error / 2


def test_interval_of_the_auc_by_groups_of_one_row_is_delongs(rng: np.random.Generator) -> None:
    labels = (rng.random(800) < 0.3).astype(float)
    parts = metrics.auc_contributions(labels, rng.normal(labels, 1.0))
    assert metrics.bootstrap_interval(parts, np.arange(800)).error == pytest.approx(
        parts.std() / np.sqrt(800), rel=0.1)


def test_bootstrap_ignores_undefined_units_and_has_no_bounds_for_fewer_than_two() -> None:
    values, weights = np.array([np.nan, 0.5, 0.5]), np.array([0.0, 1, 1])
    means = Bootstrap(3, 50).means(values, weights)
    assert set(means[np.isfinite(means)]) == {0.5}
    for units in (0, 1):
        assert np.isnan(metrics.interval(0.5, Bootstrap(units, 50).means(np.full(units, 0.5))).error)
