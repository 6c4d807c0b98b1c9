"""Weights of rows: the closed form of what they do to a probability, and to the order of two segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrmodels.multitask.weights import WeightPolicy
from ctrmodels.nn.towers import MLP

Weigh = Callable[[np.ndarray], np.ndarray]
SHARE, CLICK = 0.05, 0.20  # of rows that were shared, and clicked only
LABELS = np.repeat(np.array([[1, 1], [1, 0], [0, 0]], np.float32), [500, 2000, 7500], axis=0)


def policy(share_weight: float, **options: float) -> WeightPolicy:
    return WeightPolicy(0, {1: share_weight - 1}, **options)  # type: ignore[arg-type]


def intercept(weights: np.ndarray) -> float:
    """Probability that an intercept alone learns."""
    y, w = torch.from_numpy(LABELS[:, 0]), torch.from_numpy(weights).float()
    z = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([z], max_iter=50)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(z.expand(len(y)), y, w)
        value.backward()
        return value

    optimiser.step(loss)
    return torch.sigmoid(z).item()


def test_an_intercept_learns_the_closed_form_and_the_correction_brings_the_rate_back() -> None:
    """Share of .05, clicks without one .20, weight 5: (c + w s) / (c + w s + n) = .375 instead of .25."""
    fitted = policy(5.0).fitted(LABELS)
    learned = intercept(fitted(LABELS))
    assert learned == pytest.approx((CLICK + 5 * SHARE) / (CLICK + 5 * SHARE + 0.75), abs=0.003)
    assert expit(logit(learned) - fitted.log_odds_shift(LABELS)) == pytest.approx(0.25, abs=0.003)
    r = SHARE / (SHARE + CLICK)
    assert fitted.log_odds_shift(LABELS) == pytest.approx(np.log(1 + r * (5 - 1)), rel=1e-6)


@pytest.mark.parametrize("stub", [lambda p, y: np.ones(len(y)), lambda p, y: p(y) ** 2])
def test_ignored_weights_and_weights_applied_twice_do_not(
        stub: Callable[[WeightPolicy, np.ndarray], np.ndarray]) -> None:
    assert abs(intercept(stub(policy(5.0).fitted(LABELS), LABELS)) - 0.375) > 0.05


def test_weights_follow_actions_amounts_cap_and_negative_and_average_one() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 3], [1, 0, np.nan], [1, 0, 1e6], [0, 0, np.nan], [np.nan, 0, 0]], np.float32)
    raw = WeightPolicy(0, {1: 4.0, 2: 2.0}, frozenset({2}), negative=0.5, cap=10.0)
    expected = np.array([5, 1 + 2 * np.log(4), 1, 10, 0.5, 0.5])
    np.testing.assert_allclose(raw(labels), expected, rtol=1e-6)
    np.testing.assert_allclose(raw(torch.from_numpy(labels)).numpy(), expected, rtol=1e-6)
    fitted = raw.fitted(labels)
    assert fitted(labels[:5]).mean() == pytest.approx(1.0) and fitted.mean == pytest.approx(expected[:5].mean())


def test_weights_of_a_row_do_not_depend_on_its_batch() -> None:
    fitted = policy(5.0).fitted(LABELS)
    assert np.array_equal(fitted(LABELS)[::1000], fitted(LABELS[::1000]))


def test_a_negative_amount_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        WeightPolicy(0, {1: 1.0}, frozenset({1})).fitted(np.array([[1, -2.0], [0, 0.0]]))


def segments(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 3] and labels [N, 2]: the first segment is clicked more, the second shared more once clicked."""
    rng = np.random.default_rng(seed)
    n = 20_000
    second, x = rng.random(n) < 0.5, rng.standard_normal((n, 2))
    click = rng.random(n) < expit(np.where(second, -1.6, -0.8) + 0.5 * x[:, 0])
    share = click & (rng.random(n) < expit(np.where(second, -0.8, -3.0) + 0.5 * x[:, 1]))
    return np.column_stack([second, x]), np.column_stack([click, share]).astype(np.float32)


def trained(features: np.ndarray, labels: np.ndarray, weigh: Weigh | None, seed: int) -> np.ndarray:
    """Scores [N] of a small network of the clicks."""
    torch.manual_seed(seed)
    network = MLP(3, (8,), width_out=1)
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels[:, 0])
    weights = None if weigh is None else torch.from_numpy(weigh(labels)).float()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(1000):
            optimiser.zero_grad()
            of_rows = None if weights is None else weights[rows]
            binary_cross_entropy_with_logits(network(x[rows]).squeeze(1), y[rows], of_rows).backward()
            optimiser.step()
    with torch.no_grad():
        return network(x).squeeze(1).numpy()


def at_the_top(weigh: Callable[[float], Weigh], seed: int) -> tuple[list[float], list[float]]:
    """Rates of shares and of clicks among the best tenth, by weight of a share."""
    features, labels = segments(seed)
    shares, clicks = [], []
    for weight in WEIGHTS:
        best = np.argsort(-trained(features, labels, weigh(weight), seed))[:len(labels) // 10]
        clicks.append(float(labels[best, 0].mean()))
        shares.append(float(labels[best, 1].mean()))
    return shares, clicks


WEIGHTS = (1.0, 2.0, 4.0, 7.0, 12.0, 20.0)


def trades(shares: list[float], clicks: list[float]) -> bool:
    return spearmanr(WEIGHTS, shares).statistic >= 0.9 and clicks[-1] < clicks[0] - 0.01


def test_a_larger_weight_trades_clicks_for_shares() -> None:
    """The stub, weights that are drawn without looking, does not."""
    labels = segments(0)[1]
    assert trades(*at_the_top(lambda weight: policy(weight).fitted(labels), 0))
    rng = np.random.default_rng(0)
    assert not trades(*at_the_top(lambda weight: lambda y: rng.permutation(policy(weight).fitted(labels)(y)), 0))


def test_weight_one_is_no_weight() -> None:
    features, labels = segments(0)
    plain, weighted = (trained(features, labels, weigh, 3) for weigh in (None, policy(1.0).fitted(labels)))
    assert np.abs(plain - weighted).max() < 1e-6
    assert replace(policy(1.0), mean=1.0).log_odds_shift(labels) == 0.0
