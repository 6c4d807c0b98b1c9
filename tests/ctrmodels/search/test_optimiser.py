"""GRDA against a scalar reference, and its threshold."""

from __future__ import annotations

import math

import pytest
import torch

from ctrmodels.search.optimiser import GRDA


def test_steps_follow_the_definition():
    x = torch.tensor([0.6, 0.6, -0.2], requires_grad=True)
    gradients = [torch.tensor([0.1, -0.05, 0.0]), torch.tensor([0.3, -0.05, 0.02]), torch.tensor([-0.5, 0.1, 0.0])]
    optimizer = GRDA([x], target_threshold=0.5, steps=3, gamma=0.7, mu=0.8)
    c = 0.5 * 0.7**-0.5 * (0.7 * 3) ** -0.8
    accumulated = [0.6, 0.6, -0.2]
    for t, gradient in enumerate(gradients, start=1):
        x.grad = gradient.clone()
        optimizer.step()
        level = c * 0.7**0.5 * (t * 0.7) ** 0.8
        for i in range(3):
            accumulated[i] -= 0.7 * gradient[i].item()
            expected = math.copysign(max(abs(accumulated[i]) - level, 0.0), accumulated[i])
            assert x[i].item() == pytest.approx(expected, abs=1e-6)
    assert x[2].item() == 0.0


def test_the_last_threshold_is_the_target_whatever_the_run_length():
    for steps in (10, 300, 16_000):
        optimizer = GRDA([torch.zeros(1, requires_grad=True)], target_threshold=1.16, steps=steps)
        assert optimizer.threshold(steps) == pytest.approx(1.16)


def test_the_published_constant_follows_from_its_run_length():
    """Avazu: 16,000 steps, c = 5e-4, mu = 0.8, gamma = 1 give a final threshold of about 1.16."""
    optimizer = GRDA([torch.zeros(1, requires_grad=True)], target_threshold=1.16, steps=16_000)
    assert optimizer.param_groups[0]["c"] == pytest.approx(5e-4, rel=0.01)


def test_a_value_comes_back_from_zero():
    x = torch.tensor([0.1], requires_grad=True)
    optimizer = GRDA([x], target_threshold=0.3, steps=2, mu=0.8)
    x.grad = torch.zeros(1)
    optimizer.step()
    assert x.item() == 0.0
    x.grad = torch.tensor([-2.0])
    optimizer.step()
    assert x.item() == pytest.approx(2.1 - 0.3)


def test_a_positive_gate_below_zero_is_zero_until_its_accumulator_brings_it_back():
    x = torch.tensor([0.1], requires_grad=True)
    optimizer = GRDA([x], target_threshold=0.3, steps=2, mu=0.8, positive=True)
    x.grad = torch.tensor([2.0])
    optimizer.step()
    assert x.item() == 0.0
    x.grad = torch.tensor([-3.0])
    optimizer.step()
    assert x.item() == pytest.approx(0.1 - 2.0 + 3.0 - 0.3)


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError):
        GRDA([torch.zeros(1, requires_grad=True)], target_threshold=0.0, steps=10)
