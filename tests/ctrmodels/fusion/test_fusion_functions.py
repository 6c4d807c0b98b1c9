from __future__ import annotations

import numpy as np
import pytest

from ctrmodels.fusion import FUNCTIONS, FusionFunction, WeightedProduct, WeightedSum
from ctrmodels.fusion.functions import function_from_json


@pytest.fixture(params=list(FUNCTIONS))
def function(request: pytest.FixtureRequest) -> FusionFunction:
    return FUNCTIONS[request.param]()


def test_formulas() -> None:
    scores = np.array([[0.5, 2.0], [1.0, 4.0]])
    assert WeightedSum().score(scores, [2, 3]) == pytest.approx([7, 14])
    assert np.exp(WeightedProduct(eps=0.0).score(scores, [2, 3])) == pytest.approx([0.25 * 8, 64])


def test_a_larger_score_never_lowers_the_fused_one(function: FusionFunction) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, weights = rng.gamma(0.5, size=(40, 4)), rng.exponential(size=4) * (rng.random(4) < 0.7) + [1, 0, 0, 0]
        larger = scores + rng.exponential(size=scores.shape) * (rng.random(scores.shape) < 0.3)
        assert (function.score(larger, weights) >= function.score(scores, weights)).all()


def test_the_order_does_not_depend_on_a_common_factor_of_the_weights(function: FusionFunction) -> None:
    scores, weights = np.random.default_rng(1).random((100, 3)), np.array([0.3, 1, 2.5])
    assert np.array_equal(np.argsort(function.score(scores, weights)), np.argsort(function.score(scores, 7 * weights)))


def test_a_products_order_survives_miscalibration_by_factors_and_a_sums_does_not() -> None:
    scores, weights, factors = np.random.default_rng(2).random((200, 3)), [1, 2, 0.5], np.array([5, 0.1, 30])

    def order(function: FusionFunction, values: np.ndarray) -> np.ndarray:
        return np.argsort(function.score(values, weights))

    product = WeightedProduct(eps=0.0)
    assert np.array_equal(order(product, scores), order(product, scores * factors))
    assert not np.array_equal(order(WeightedSum(), scores), order(WeightedSum(), scores * factors))


def test_a_score_of_zero_keeps_a_product_finite() -> None:
    assert np.isfinite(WeightedProduct().score(np.zeros((2, 2)), [1, 1])).all()


@pytest.mark.parametrize("weights", [[1, -0.1], [0, 0], [1, np.nan], [1], [1, 1, 1]])
def test_useless_weights_are_refused(function: FusionFunction, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        function.score(np.ones((3, 2)), weights)


def test_a_product_refuses_negative_scores() -> None:
    with pytest.raises(ValueError, match=">= 0"):
        WeightedProduct().score(np.array([[-0.1, 1]]), [1, 1])


def test_json_round_trip_keeps_constants_and_refuses_the_unknown(function: FusionFunction) -> None:
    assert function_from_json(function.to_json()) == function
    assert function_from_json(WeightedProduct(eps=1e-3).to_json()) == WeightedProduct(eps=1e-3)
    with pytest.raises(ValueError, match="unknown fusion function 'mean'"):
        function_from_json({"id": "mean"})
