"""Metrics of lists against scikit-learn where it has them, against the plain definition where not."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from ctrmodels import metrics
from ctrmodels.metrics import ListAuc, ListConcordance, ListMrr, ListNdcg, ListRanks, ListValue, RowAuc
from ctrmodels.metrics.places import places_by_counting, places_by_sorting
from tests.support.lists import coarse_scores, uneven_lists


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
    for above, tied in (places_by_sorting(block), places_by_counting(block, 7)):
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
