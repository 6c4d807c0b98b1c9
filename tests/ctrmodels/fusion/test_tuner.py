"""The tuner on lists whose best weights are known, with and without floors."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from planted_lists import BEST_WEIGHTS, Lists

from ctrmodels.fusion import (
    Constrained,
    ExpectedValue,
    GaussianProcess,
    Goal,
    LengthProduct,
    Point,
    Tpe,
    Tuner,
    WeightedProduct,
    WeightedSum,
    Window,
    best,
    corners,
    equal,
    goal,
    tune,
)

FREE = Goal(0, (None,))
PRODUCT = WeightedProduct(eps=1e-12)


@pytest.fixture(scope="module")
def lists() -> Lists:
    return Lists.generate(4000)


@pytest.fixture(scope="module")
def halves(lists: Lists) -> tuple[Lists, Lists]:
    """Lists to tune on and lists to report on."""
    return lists.take(0, 2000), lists.take(2000, 4000)


def share_of_best(lists: Lists, weights: np.ndarray | tuple[float, ...]) -> float:
    """Value at the top under ``weights``, relative to the planted best weights."""
    found, ideal = (lists.value_at_top(PRODUCT.score(lists.scores, w))[0] for w in (weights, BEST_WEIGHTS))
    return float(found / ideal)


def recovers_the_truth(weights: tuple[float, ...], report: Lists) -> bool:
    """The bar: 99.5 % of the best value on other lists, and weight ratios within 15 %."""
    ratios = np.array(weights) / weights[0] / BEST_WEIGHTS
    return share_of_best(report, weights) >= 0.995 and bool((np.abs(ratios - 1) <= 0.15).all())


def test_the_planted_lists_have_the_known_gap_between_good_and_naive_weights(lists: Lists) -> None:
    assert share_of_best(lists, (1, 1, 1)) == pytest.approx(0.945, abs=0.01)
    assert share_of_best(lists, (1, 0, 0)) == pytest.approx(0.441, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("screened", [False, True])
def test_sixty_trials_recover_the_planted_weights(halves: tuple[Lists, Lists], seed: int, screened: bool) -> None:
    tuning, report = halves
    few = tuning.take(0, 400)
    points = tune(PRODUCT, Window(tuning.scores, tuning.value_at_top), FREE, 60, seed,
                  Window(few.scores, few.value_at_top) if screened else None)
    assert recovers_the_truth(best(points, FREE).weights, report)


def test_equal_weights_do_not_pass_for_tuned(halves: tuple[Lists, Lists]) -> None:
    assert not recovers_the_truth((1, 1, 1), halves[1])


SHARES = {0.0: 1.000, 0.7: 0.944, 0.8: 0.868, 0.9: 0.752, 0.97: 0.615}
"""Best value under a floor on clicks, as a share of the best without, on 500 lists: measured on a grid."""


@pytest.mark.parametrize("floor", list(SHARES))
@pytest.mark.parametrize("tuner", [Tpe(), GaussianProcess(startup=6)], ids=lambda t: t.id)
def test_under_a_click_floor_a_tuner_reaches_the_best_of_a_grid(floor: float, tuner: Tuner) -> None:
    lists = Lists.generate(500, seed=5)
    window = Window(lists.scores, lists.value_and_clicks_at_top)
    judge = window.judge(PRODUCT)
    clicks = judge((1, 0, 0))[1]
    rule = Goal(0, (None, floor * clicks or None))
    axis = np.exp(np.linspace(-3, 3, 41))
    grid = np.array([judge((1, a, b)) for a in axis for b in axis])
    bound = grid[grid[:, 1] >= floor * clicks, 0].max()
    assert bound / grid[:, 0].max() == pytest.approx(SHARES[floor], abs=0.03)
    seeds = range(5) if tuner.id == "tpe" else range(1)
    found = [best(tune(PRODUCT, window, rule, 60 if tuner.id == "tpe" else 40, seed, tuner=tuner), rule)
             for seed in seeds]
    assert not any(rule.shortfall(p.metrics) for p in found)
    assert np.median([p.metrics[0] for p in found]) >= 0.99 * bound
    assert rule.shortfall(judge((1, 1, 1))) or judge((1, 1, 1))[0] < 0.99 * bound


def test_the_same_seed_tries_the_same_weights_and_another_seed_does_not(halves: tuple[Lists, Lists]) -> None:
    few = halves[0].take(0, 50)
    window = Window(few.scores, few.value_at_top)
    first = tune(WeightedSum(), window, FREE, 30, seed=1)
    assert tune(WeightedSum(), window, FREE, 30, seed=1) == first
    assert tune(WeightedSum(), window, FREE, 30, seed=2) != first


def test_equal_weights_come_first_and_every_score_gets_to_rule(halves: tuple[Lists, Lists]) -> None:
    few = halves[0].take(0, 20)
    points = tune(PRODUCT, Window(few.scores, few.value_at_top), FREE, 30)
    assert len(points) <= 30
    assert points[0].weights == (1, 1, 1) and points[0].source == "equal"
    starts = [p for p in points if p.source == "start"]
    assert [int(np.argmax(p.weights)) for p in starts] == [0, 1, 2]
    assert {p.source for p in points} == {"equal", "start", "tpe", "local"}
    assert all(p.weights[FREE.primary] == 1 for p in points)


def test_trials_are_never_exceeded_however_few(halves: tuple[Lists, Lists]) -> None:
    few = halves[0].take(0, 20)
    window = Window(few.scores, few.value_at_top)
    for trials in (1, 2, 5, 9, 12):
        assert 1 <= len(tune(PRODUCT, window, FREE, trials)) <= trials


@pytest.mark.filterwarnings("error")
def test_the_local_search_may_start_at_the_edge_of_the_box() -> None:
    scores = np.eye(3)

    def only_first(fused: np.ndarray) -> np.ndarray:
        return fused[:1] / fused.sum()

    points = tune(WeightedSum(), Window(scores, only_first), FREE, 40)
    assert best(points, FREE).weights == pytest.approx((1, np.exp(-3), np.exp(-3)), abs=1e-5)


def test_one_score_needs_one_evaluation() -> None:
    few = Lists.generate(20)
    points = tune(PRODUCT, Window(few.scores[:, :1], few.value_at_top), FREE, 30)
    assert [p.weights for p in points] == [(1.0,)]


def test_a_function_without_numbers_to_search_is_judged_once(halves: tuple[Lists, Lists]) -> None:
    few = halves[0].take(0, 20)
    given = ExpectedValue(worth=(0.7, 0.2, 0.1), priced=False)
    point, = tune(given, Window(few.scores, few.value_at_top), FREE, 30)
    assert (point.weights, point.source) == ((0.7, 0.2, 0.1), "start")
    assert point.metrics == tuple(few.value_at_top(few.scores @ point.weights))


def test_screened_trials_come_back_judged_on_the_whole_window(halves: tuple[Lists, Lists]) -> None:
    whole, few = halves[0].take(0, 200), halves[0].take(0, 20)
    window = Window(whole.scores, whole.value_and_clicks_at_top)
    rule = Goal(0, (None, None))
    points = tune(PRODUCT, window, rule, 40, screen=Window(few.scores, few.value_and_clicks_at_top))
    assert points[0].source == "equal"
    for p in points:
        assert p.metrics == window.judge(PRODUCT)(p.weights)


def test_tuning_leaves_optunas_verbosity_as_it_was(halves: tuple[Lists, Lists]) -> None:
    few = halves[0].take(0, 20)
    before = optuna.logging.get_verbosity()
    tune(PRODUCT, Window(few.scores, few.value_at_top), FREE, 5)
    assert optuna.logging.get_verbosity() == before


def test_equal_weights_are_those_of_any_function(halves: tuple[Lists, Lists]) -> None:
    few = halves[0].take(0, 100)
    window = Window(few.scores, few.value_at_top)
    assert equal(Constrained(), window).metrics == equal(WeightedSum(), window).metrics
    assert equal(PRODUCT, window) == tune(PRODUCT, window, FREE, 4)[0]


def point(*metrics: float) -> Point:
    return Point("weighted_sum", (1.0, 1.0), metrics, "tpe")


def test_floors_are_a_share_of_the_best_single_order_and_spare_the_primary() -> None:
    rule = goal([point(0.8, 0.3), point(0.5, 0.6)], primary=0, floor=0.9)
    assert rule.floors == (None, pytest.approx(0.54))
    assert goal([point(0.8, 0.3), point(0.5, 0.6)], primary=1, floor=0).floors == (None, None)


def test_the_rule_takes_the_best_primary_that_reaches_the_floors_else_the_nearest_miss() -> None:
    rule = Goal(0, (None, 0.5))
    assert best([point(0.9, 0.4), point(0.7, 0.5), point(0.6, 0.6)], rule) == point(0.7, 0.5)
    assert best([point(0.9, 0.2), point(0.7, 0.4)], rule) == point(0.7, 0.4)


def test_corners_are_the_single_orders(halves: tuple[Lists, Lists]) -> None:
    few = halves[0].take(0, 100)
    window = Window(few.scores, few.value_at_top)
    assert len(corners(LengthProduct(), window)) == len(corners(ExpectedValue(), window)) == 2  # the log has the third
    for i, corner in enumerate(corners(WeightedSum(), window)):
        assert corner.metrics == tuple(few.value_at_top(few.scores[:, i]))
        assert corner.metrics == window.judge(PRODUCT)(corner.weights)
