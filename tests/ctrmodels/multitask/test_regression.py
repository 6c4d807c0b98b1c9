from __future__ import annotations

import numpy as np
import pytest
import torch

from ctrmodels.multitask.regression import LogTarget


def lognormal(n: int = 100_000) -> tuple[np.ndarray, np.ndarray]:
    """Signals x and values y with ``log(1 + y) = 3 + x + noise``, noise of standard deviation 0.8."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(n)
    return x, np.expm1(np.maximum(3 + x + 0.8 * rng.standard_normal(n), 0.0))


def test_smearing_turns_a_predicted_logarithm_into_the_expected_value() -> None:
    """Without it the score of a perfect logarithm is too small by exp(variance / 2), here by a quarter."""
    x, y = lognormal()
    target = LogTarget()
    target.fit(y)
    output = (3 + x - float(target.mean)) / float(target.sd)  # the best logarithm there is
    before = target.expected(torch.from_numpy(output)).mean().item()
    target.fit_residuals(output, y)
    after = target.expected(torch.from_numpy(output)).mean().item()
    assert before / y.mean() < 0.78
    assert after / y.mean() == pytest.approx(1.0, abs=0.02)


def test_the_target_is_standardised_so_that_predicting_the_mean_costs_one() -> None:
    _, y = lognormal()
    target = LogTarget()
    target.fit(y)
    assert target.loss(torch.zeros(len(y)), torch.from_numpy(y).float()).mean().item() == pytest.approx(1.0, abs=1e-4)


def test_a_perfect_output_costs_nothing_and_gives_the_value_back() -> None:
    y = torch.tensor([0.0, 1.0, 50.0, 3000.0])
    target = LogTarget()
    target.fit(y.numpy())
    output = (torch.log1p(y) - target.mean) / target.sd
    assert target.loss(output, y).max() < 1e-10
    torch.testing.assert_close(target.expected(output), y, rtol=1e-4, atol=1e-4)


def test_scores_are_never_negative() -> None:
    target = LogTarget()
    target.fit(np.array([1.0, 2.0]))
    assert target.expected(torch.tensor([-50.0])).item() == 0.0


def test_a_constant_value_can_be_learned() -> None:
    target = LogTarget()
    target.fit(np.full(5, 7.0))
    assert target.sd.item() == 1.0 and target.expected(torch.zeros(1)).item() == pytest.approx(7.0)


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, -0.5])])
def test_no_values_and_negative_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="none of them negative"):
        LogTarget().fit(values)
