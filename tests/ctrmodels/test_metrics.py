"""Metrics against scikit-learn and SciPy where those have them, against the plain definition where not."""

from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import somersd
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from ctrmodels import metrics
from ctrmodels.metrics import (
    Bootstrap,
    ListAuc,
    ListConcordance,
    ListMrr,
    ListNdcg,
    ListRanks,
    ListValue,
    RowAuc,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def coarse_scores(rng: np.random.Generator, n: int) -> np.ndarray:
    """Scores with many ties, some of them far apart in magnitude."""
    return rng.integers(0, 6, n) / 5 + 0.1


def brute_share(labels: np.ndarray, scores: np.ndarray) -> float:
    """Concordant share of the pairs with different labels, by looking at every pair."""
    points = [0.5 if a == b else float((a > b) == (x > y))
              for (x, a), (y, b) in combinations(zip(labels, scores, strict=True), 2) if x != y]
    return float(np.mean(points)) if points else float("nan")


# --- global metrics


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


# --- metrics of lists


def uneven_lists(rng: np.random.Generator, n: int) -> np.ndarray:
    """Groups of very different sizes in mixed order, one longer than the counting limit, negative ids."""
    groups = np.concatenate([rng.integers(-5, 60, n), np.full(100, 1 << 60)])
    return rng.permutation(groups)


@pytest.mark.parametrize("seed", range(4))
def test_gauc_equals_the_loop_over_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = uneven_lists(rng, 400)
    labels, scores = (rng.random(500) < 0.2).astype(float), coarse_scores(rng, 500)
    areas, sizes = [], []
    for g in np.unique(groups):
        inside = groups == g
        if 0 < labels[inside].mean() < 1:
            areas.append(roc_auc_score(labels[inside], scores[inside]))
            sizes.append(inside.sum())
    expected = pytest.approx(np.average(areas, weights=sizes), abs=1e-12)
    assert metrics.gauc(labels, scores, groups) == expected
    assert ListConcordance(labels, groups).mean(scores) == expected
    assert metrics.gauc_coverage(labels, groups) == pytest.approx(sum(sizes) / 500)


@pytest.mark.parametrize("k", [1, 3, 10, None])
@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_ndcg_equals_sklearn_per_group_with_ties_and_grades(k: int | None, gain: str) -> None:
    rng = np.random.default_rng(k or 0)
    groups = uneven_lists(rng, 400)
    labels, scores = rng.choice([0.0, 0, 0, 1, 2, 3], 500), coarse_scores(rng, 500)
    each = []
    for g in np.unique(groups):
        inside = groups == g
        gains = np.exp2(labels[inside]) - 1 if gain == "exponential" else labels[inside]
        if gains.any():
            # sklearn wants two rows at least; one more that is last and irrelevant changes nothing
            each.append(ndcg_score([[*gains, 0]], [[*scores[inside], -9]], k=k))
    found = metrics.ndcg(labels, scores, groups, k, gain)  # type: ignore[arg-type]
    assert found == pytest.approx(np.mean(each), abs=1e-12)


def test_ndcg_of_tied_rows_is_the_mean_over_their_orders() -> None:
    labels, scores, groups = np.array([1.0, 0, 0, 1]), np.array([0.5, 0.5, 0.5, 0.2]), np.zeros(4, int)
    orders = [metrics.ndcg(labels, np.array([*order, 0.2]), groups, 2)
              for order in permutations([0.5, 0.6, 0.7])]
    assert metrics.ndcg(labels, scores, groups, 2) == pytest.approx(np.mean(orders), abs=1e-12)


def test_counting_and_sorting_find_the_same_places(rng: np.random.Generator) -> None:
    block = coarse_scores(rng, 40 * 30).reshape(40, 30)
    for above, tied in (metrics._places_by_sorting(block), metrics._places_by_counting(block, 7)):
        assert np.array_equal(above, (block[:, None, :] > block[:, :, None]).sum(2))
        assert np.array_equal(tied, (block[:, None, :] == block[:, :, None]).sum(2))


@pytest.mark.parametrize("metric", [ListAuc, ListNdcg, ListConcordance, ListMrr, ListValue])
def test_no_list_metric_depends_on_the_order_of_rows_or_on_monotone_transforms(metric, rng) -> None:
    groups = uneven_lists(rng, 400)
    labels, scores = (rng.random(500) < 0.3).astype(float), coarse_scores(rng, 500)
    expected = pytest.approx(metric(labels, groups).mean(scores), abs=1e-12)
    shuffled = rng.permutation(500)
    assert metric(labels[shuffled], groups[shuffled]).mean(scores[shuffled]) == expected
    assert metric(labels, groups).mean(np.exp(5 * scores)) == expected


@pytest.mark.parametrize("metric", [ListAuc, ListNdcg, ListConcordance, ListMrr, ListValue])
def test_unknown_labels_are_left_out_of_their_list(metric, rng) -> None:
    groups = uneven_lists(rng, 400)
    labels, scores = (rng.random(500) < 0.3).astype(float), coarse_scores(rng, 500)
    unknown = rng.random(500) < 0.2
    known = metric(labels[~unknown], groups[~unknown]).mean(scores[~unknown])
    assert metric(np.where(unknown, np.nan, labels), groups).mean(scores) == pytest.approx(known, abs=1e-12)


def test_list_values_are_per_group_in_ascending_order_and_carry_their_weights() -> None:
    metric = ListAuc(np.array([1.0, 0, 0, 1, 1, 0]), np.array([9, 9, 9, -4, -4, 5]))
    assert metric.groups.tolist() == [-4, 5, 9]
    assert metric.weights.tolist() == [0, 0, 3]
    assert metric.values(np.array([0.2, 0.1, 0.3, 0, 0, 0])).tolist() == [0, 0, 0.5]


def test_row_auc_is_the_global_auc_of_known_rows(rng: np.random.Generator) -> None:
    labels, scores = (rng.random(300) < 0.3).astype(float), coarse_scores(rng, 300)
    unknown = rng.random(300) < 0.2
    found = RowAuc(np.where(unknown, np.nan, labels)).mean(scores)
    assert found == pytest.approx(metrics.auc(labels[~unknown], scores[~unknown]), abs=1e-12)
    assert np.isnan(RowAuc(np.ones(3)).mean(np.arange(3.0)))


def by_random_orders(labels: np.ndarray, scores: np.ndarray, value: Callable[[np.ndarray], float]) -> float:
    """Mean of ``value`` over the orders of the labels that ``scores`` allows, by listing all of them."""
    found = [value(labels[list(o)]) for o in permutations(range(len(labels)))
             if (np.diff(scores[list(o)]) <= 0).all()]
    return float(np.mean(found))


@pytest.mark.parametrize("seed", range(12))
def test_mrr_is_the_reciprocal_rank_of_the_first_relevant_row_over_the_orders_of_tied_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = (rng.random(6) < 0.4).astype(float), rng.integers(0, 3, 6).astype(float)
    labels[0] = 1
    expected = by_random_orders(labels, scores, lambda found: 1 / (1 + np.flatnonzero(found)[0]))
    assert ListMrr(labels, np.zeros(6)).mean(scores) == pytest.approx(expected, abs=1e-12)


def test_mrr_skips_lists_without_a_relevant_row_and_is_the_mean_over_the_others(rng: np.random.Generator) -> None:
    groups = uneven_lists(rng, 400)
    labels, scores = (rng.random(500) < 0.15).astype(float), rng.permutation(500) / 7
    each = []
    for g in np.unique(groups):
        hits = np.flatnonzero(labels[groups == g][np.argsort(-scores[groups == g])])
        each += [1 / (1 + hits[0])] if len(hits) else []
    assert ListMrr(labels, groups).mean(scores) == pytest.approx(np.mean(each), abs=1e-12)
    assert np.isnan(ListMrr(0 * labels, groups).mean(scores))


@pytest.mark.parametrize(("k", "discount"), [(2, "none"), (3, "log"), (None, "log"), (9, "none")])
@pytest.mark.parametrize("seed", range(4))
def test_value_per_exposure_is_what_the_shown_rows_bring_over_the_orders_of_tied_rows(k, discount, seed) -> None:
    rng = np.random.default_rng(seed)
    values, scores = rng.normal(size=6) * (rng.random(6) < 0.7), rng.integers(0, 3, 6).astype(float)
    weight = np.where(np.arange(6) < (k or 6), 1 / np.log2(np.arange(6) + 2) if discount == "log" else 1, 0)
    expected = by_random_orders(values, scores, lambda found: found @ weight / weight.sum())
    assert ListValue(values, np.zeros(6), k, discount).mean(scores) == pytest.approx(expected, abs=1e-12)


def test_value_is_all_value_over_all_exposures_and_adds_up_over_objectives(rng: np.random.Generator) -> None:
    groups, scores = uneven_lists(rng, 400), rng.permutation(500) / 7
    clicks, price = rng.random(500) < 0.3, rng.lognormal(size=500)
    shown = np.concatenate([np.flatnonzero(groups == g)[np.argsort(-scores[groups == g])[:3]]
                            for g in np.unique(groups)])
    assert ListValue(clicks * price, groups, 3).mean(scores) == pytest.approx((clicks * price)[shown].mean())
    parts = [ListValue(v, groups, 3).mean(scores) for v in (clicks, clicks * price)]
    assert ListValue(clicks * (1 + 2 * price), groups, 3).mean(scores) == pytest.approx(parts[0] + 2 * parts[1])


@pytest.mark.parametrize("metric", [ListNdcg, ListMrr, ListValue])
def test_a_list_of_one_row_is_worth_the_same_under_every_score(metric) -> None:
    labels, groups = np.array([1.0, 1, 0, 0]), np.array([0, 1, 1, 2])
    found = [metric(labels, groups).values(s) for s in (np.arange(4.0), -np.arange(4.0))]
    assert found[0][[0, 2]].tolist() == found[1][[0, 2]].tolist() == [1, 0]
    assert ListAuc(labels, groups).weights.tolist() == [0, 2, 0]


@pytest.mark.parametrize("metric", [ListAuc, ListConcordance, ListNdcg, ListMrr])
def test_a_constant_score_is_worth_what_shuffled_lists_are(metric, rng: np.random.Generator) -> None:
    groups = np.repeat(np.arange(200), 8)
    labels = (rng.random(1600) < 0.3).astype(float)
    judged = metric(labels, groups)
    shuffled = np.mean([judged.mean(rng.random(1600)) for _ in range(200)])
    assert judged.mean(np.zeros(1600)) == pytest.approx(shuffled, abs=0.006)


def test_ranks_count_the_rows_of_the_list_above_and_tied(rng: np.random.Generator) -> None:
    groups, scores = uneven_lists(rng, 300), coarse_scores(rng, 400)
    ranks = ListRanks(groups)
    above, tied = ranks(scores)
    for i in range(0, 400, 7):
        inside = scores[groups == groups[i]]
        assert (above[i], tied[i]) == ((inside > scores[i]).sum(), (inside == scores[i]).sum())
        assert ranks.size[ranks.unit[i]] == len(inside)
    with pytest.raises(ValueError, match="finite"):
        ranks(np.full(400, np.nan))


# --- undefined cases and refusals


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


# --- uncertainty


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


# --- the summary


def test_evaluate_names_the_metrics_of_each_kind(rng: np.random.Generator) -> None:
    labels, scores, groups = rng.integers(0, 2, 50).astype(float), rng.random(50), rng.integers(0, 5, 50)
    assert set(metrics.evaluate("binary", labels, scores, groups)) == {
        "auc", "gauc", "gauc_coverage", "logloss", "ne", "calibration", "ece"}
    assert "gauc" not in metrics.evaluate("binary", labels, scores)
    assert set(metrics.evaluate("regression", labels, scores, groups)) == {"rmse", "rmse_log", "xauc"}
