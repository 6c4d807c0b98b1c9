from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from ctrmodels.fusion import (
    FUNCTIONS,
    Constrained,
    ExpectedValue,
    ExponentialBoost,
    ExponentialSum,
    FusionFunction,
    LengthProduct,
    ReciprocalRank,
    ShiftedPower,
    WeightedProduct,
    WeightedSum,
)
from ctrmodels.fusion.functions import function_from_json

ONE_LIST = np.zeros(1000, int)


@pytest.fixture(params=list(FUNCTIONS))
def function(request: pytest.FixtureRequest) -> FusionFunction:
    return FUNCTIONS[request.param]()


def fuse(function: FusionFunction, scores: np.ndarray, weights: object) -> np.ndarray:
    """All rows as one list."""
    return function.score(scores, weights, ONE_LIST[:len(scores)])  # type: ignore[arg-type]


def some_theta(function: FusionFunction, k: int, rng: np.random.Generator) -> dict[str, float]:
    return {name: rng.uniform(r.low, r.high) for name, r in function.ranges(k, 0).items()}


def test_formulas() -> None:
    scores = np.array([[0.5, 2.0], [1.0, 4.0]])
    assert WeightedSum().score(scores, [2, 3]) == pytest.approx([7, 14])
    assert np.exp(WeightedProduct(eps=0.0).score(scores, [2, 3])) == pytest.approx([0.25 * 8, 64])
    assert np.exp(LengthProduct(0.0, "sigmoid", 2.0).score(scores, [2, 3])) == pytest.approx([0.25 / 8, (2 / 3) ** 3])
    assert np.exp(LengthProduct(0.0, "log", 2.0).score(scores, [2, 3])) == pytest.approx(
        [0.25 * np.log(2) ** 3, np.log(3) ** 3])
    assert np.exp(ShiftedPower((2.0, 0.5)).score(scores, [2, 3])) == pytest.approx([4 * 8, 9 * 27])
    assert np.exp(ExponentialSum((2.0, 0.5)).score(scores, [2, 3])) == pytest.approx(
        [2 * np.e + 3 * np.e, 2 * np.exp(2) + 3 * np.exp(2)])
    assert np.exp(ExponentialBoost(1, 0.0).score(scores, [2, 3])) == pytest.approx([8 * np.e, 64 * np.exp(2)])
    assert ExpectedValue().score(scores, [3, 0.5]) == pytest.approx([3 * 0.5 * 2**0.5, 3 * 2])
    assert fuse(ReciprocalRank((1.0, 60.0)), scores, [2, 3]) == pytest.approx([2 / 3 + 3 / 62, 2 / 2 + 3 / 61])
    assert Constrained((0.0, 3.0)).score(scores, [1, 0]) == pytest.approx([0.5 / 1.5, 1 + 1 / 2])


def test_an_expected_value_adds_what_events_are_worth_and_prices_those_that_have_a_price() -> None:
    scores = np.array([[0.5, 0.2, 4.0], [0.4, 0.1, 9.0], [0.9, 0.0, 1.0]])
    value = ExpectedValue(worth=(0.1, 2.0), priced=(False, True))
    function, weights = value.at({"power": 0.5}, 3, 0)
    assert (function, weights) == (value, (0.1, 2.0, 0.5))
    assert function.score(scores, weights) == pytest.approx([0.05 + 0.4 * 2, 0.04 + 0.2 * 3, 0.09])
    assert ExpectedValue((0.1, 2.0)).score(scores, weights) == pytest.approx([0.45 * 2, 0.24 * 3, 0.09])
    free = ExpectedValue((0.1, 2.0), priced=False)
    assert free.column is None and not free.ranges(2, 0) and free.at({}, 2, 0) == (free, (0.1, 2.0))
    assert free.score(scores[:, :2], (0.1, 2.0)) == pytest.approx([0.45, 0.24, 0.09])
    alone = ExpectedValue().score(scores[:, 1:], (1.0, 1.0))  # pCTR · pCVR · price of the joint event's probability
    assert np.array_equal(np.argsort(alone), np.argsort(scores[:, 1] * scores[:, 2]))


def test_columns_of_the_log_are_the_last_score_of_the_functions_that_have_one() -> None:
    assert {f.id: f().column for f in FUNCTIONS.values() if f().column} == {
        "product_with_length": "length", "expected_value": "price"}


def test_a_score_is_made_to_count_more_by_its_weight_or_else_by_its_floor() -> None:
    assert WeightedSum().scaled((1.0, 2.0), 1, 4.0) == (WeightedSum(), (1.0, 8.0))
    assert Constrained(0.5).scaled((1.0, 0.0), 0, 4.0) == (Constrained(0.5), (4.0, 0.0))
    assert Constrained((0.0, 0.5)).scaled((1.0, 0.0), 1, 4.0) == (Constrained((0.0, 2.0)), (1.0, 0.0))


def test_ranks_are_those_of_each_list_with_ties_shared() -> None:
    rng = np.random.default_rng(0)
    scores, groups = rng.integers(0, 6, (300, 2)).astype(float), rng.integers(0, 20, 300)
    fused = ReciprocalRank((3.0, 5.0)).score(scores, [1, 2], groups)
    for group in range(20):
        rows = groups == group
        first, second = (rankdata(-scores[rows, k]) for k in (0, 1))
        assert fused[rows] == pytest.approx(1 / (first + 3) + 2 / (second + 5))


def test_a_larger_score_never_lowers_the_fused_one(function: FusionFunction) -> None:
    """Row by row, since a row that climbs in a list pushes others down."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        variant = function.at(some_theta(function, 4, rng), 4, 0)[0]
        scores, weights = rng.gamma(0.5, size=(40, 4)), rng.exponential(size=4) * (rng.random(4) < 0.7) + [1, 0, 0, 0]
        larger, row = scores.copy(), rng.integers(40)
        larger[row] += rng.exponential(size=4) * (rng.random(4) < 0.5)
        assert fuse(variant, larger, weights)[row] >= fuse(variant, scores, weights)[row] - 1e-12


def test_the_order_does_not_depend_on_a_common_factor_of_the_weights(function: FusionFunction) -> None:
    """But for the price, whose weight is an exponent."""
    scores, weights = np.random.default_rng(1).random((100, 3)), np.array([0.3, 1, 2.5])
    larger = weights * (7, 7, 1 if function.column == "price" else 7)
    assert np.array_equal(np.argsort(fuse(function, scores, weights)), np.argsort(fuse(function, scores, larger)))


def test_a_score_with_all_the_weight_decides_alone(function: FusionFunction) -> None:
    """What lets corners be judged once for all functions. The length's own function is monotone as well; a price
    multiplies what is worth something."""
    scores = np.random.default_rng(3).random((50, 3))
    for k in range(2 if function.column == "price" else 3):
        fused = fuse(function, scores, np.eye(3)[k])
        assert np.array_equal(np.argsort(fused), np.argsort(scores[:, k]))


def test_a_products_order_survives_miscalibration_by_factors_and_a_sums_does_not() -> None:
    scores, weights, factors = np.random.default_rng(2).random((200, 3)), [1, 2, 0.5], np.array([5, 0.1, 30])

    def order(function: FusionFunction, values: np.ndarray) -> np.ndarray:
        return np.argsort(fuse(function, values, weights))

    for survivor in (WeightedProduct(eps=0.0), ReciprocalRank()):
        assert np.array_equal(order(survivor, scores), order(survivor, scores * factors))
    assert not np.array_equal(order(WeightedSum(), scores), order(WeightedSum(), scores * factors))


def test_zeros_and_large_scores_keep_every_function_finite(function: FusionFunction) -> None:
    for weights in ([1, 1], [1, 0], [0, 1]):
        assert np.isfinite(fuse(function, np.array([[0.0, 0.0], [0.0, 2000.0], [2000.0, 0.0]]), weights)).all()


def test_no_shift_of_a_list_moves_an_exponential_sum_out_of_numbers() -> None:
    scores = np.array([[900.0, 1.0], [901.0, 1.0]])
    assert np.diff(ExponentialSum(1.0).score(scores, [1, 1])) == pytest.approx([1.0])


@pytest.mark.parametrize("weights", [[1, -0.1], [0, 0], [1, np.nan], [1], [1, 1, 1]])
def test_useless_weights_are_refused(function: FusionFunction, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        fuse(function, np.ones((3, 2)), weights)


def test_scores_that_a_function_is_not_made_for_are_refused(function: FusionFunction) -> None:
    for broken in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            fuse(function, np.array([[broken, 1]]), [1, 1])
    if function.lowest == 0:
        with pytest.raises(ValueError, match=">= 0"):
            fuse(function, np.array([[-0.1, 1]]), [1, 1])
    if function.needs_lists:
        with pytest.raises(ValueError, match="list of each row"):
            function.score(np.ones((2, 2)), [1, 1])
    if isinstance(function, LengthProduct | ExpectedValue):
        with pytest.raises(ValueError, match="last one"):
            function.ranges(1, 0)


@pytest.mark.parametrize("primary", [0, 2])
def test_a_search_starts_inside_its_ranges_and_reaches_all_constants(function: FusionFunction, primary: int) -> None:
    ranges = function.ranges(3, primary)
    assert ranges and all(r.low <= r.start <= r.high for r in ranges.values())
    start, weights = function.at({name: r.start for name, r in ranges.items()}, 3, primary)
    assert len(weights) == 3 and weights[primary] == 1
    for name, r in ranges.items():
        theta = {n: other.start for n, other in ranges.items()} | {name: r.high if r.start < r.high else r.low}
        assert function.at(theta, 3, primary) != (start, weights), name


def test_ranges_are_the_documented_ones() -> None:
    low, high = np.exp([-3, 3]).round(6).tolist()
    assert WeightedSum().at({"log_weight_1": -3.0, "log_weight_2": 3.0}, 3, 0)[1] == (1, low, high)
    assert ExpectedValue().ranges(3, 0).keys() == {"power"}
    assert ExpectedValue().at({"power": 0.7}, 3, 0)[1] == (1, 1, 0.7)
    assert Constrained().at({"floor_0": 0.5, "floor_2": 1.5}, 3, 1) == (Constrained((0.5, 0.0, 1.5)), (0, 1, 0))
    assert ExponentialBoost().at({"log_weight_0": 0.0}, 2, 1)[0].lead == 1


def test_tensors_are_fused_as_arrays_are(function: FusionFunction) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        variant, weights = function.at(some_theta(function, 3, rng), 3, 0)
        scores = rng.gamma(0.5, size=(64, 3))
        found = variant.graph(torch.from_numpy(scores), torch.tensor(weights, dtype=torch.float64))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), fuse(variant, scores, weights), rtol=1e-12, atol=1e-12)


def test_json_round_trip_keeps_constants_and_refuses_the_unknown(function: FusionFunction) -> None:
    assert function_from_json(function.to_json()) == function
    tuned = function.at(some_theta(function, 3, np.random.default_rng(4)), 3, 0)[0]
    assert function_from_json(json.loads(json.dumps(tuned.to_json()))) == tuned
    with pytest.raises(ValueError, match="unknown fusion function 'mean'"):
        function_from_json({"id": "mean"})
