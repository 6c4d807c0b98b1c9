"""Weights by rule: decay, dynamic weight average, random."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels.multitask.balancers import Balancer, Decay, DecayOptions, Dwa, DwaOptions, Problem, RandomWeights

NAMES = ("a@all", "b@click")


class LastBatch(Dwa):
    """Ratios of single batches instead of epochs' means."""

    def descend(self, losses, rest, values: Tensor, step: int) -> Tensor:
        self.loss_sums.copy_(values * self.seen)
        return super().descend(losses, rest, values, step)


class Alike(RandomWeights):
    """The plain sum."""

    def weigh(self, step: int) -> Tensor:
        return torch.ones(2)


def epoch(balancer: Balancer, losses: list[tuple[float, float]], first: int = 0) -> dict[str, float]:
    """One epoch of steps with these ``losses``; what it recorded."""
    for step, values in enumerate(losses, first):
        x = nn.Parameter(torch.ones(2))
        balancer.backward(dict(zip(NAMES, (x * torch.tensor(values)).unbind(), strict=True)), torch.zeros(()), step)
    return balancer.end_epoch()


def weights(recorded: dict[str, float]) -> list[float]:
    return [recorded[f"weight.{name}"] for name in NAMES]


def test_decay_multiplies_by_a_factor_per_epoch() -> None:
    balancer = Decay(Problem(NAMES), DecayOptions({"b": 0.9}))
    found = [weights(epoch(balancer, [(1.0, 2.0)] * 3)) for _ in range(4)]
    assert np.array(found) == pytest.approx(np.array([[1, 0.9**t] for t in range(4)]))


def test_the_weights_reach_the_gradients_and_the_record_has_mean_losses() -> None:
    balancer = Decay(Problem(NAMES), DecayOptions({"a": 0.5}))
    assert epoch(balancer, [(1.0, 2.0), (3.0, 2.0)]) == pytest.approx(
        {"weight.a@all": 1, "weight.b@click": 1, "loss.a@all": 2, "loss.b@click": 2})
    x = nn.Parameter(torch.ones(2))
    balancer.backward({"a@all": 4 * x[0], "b@click": x[1]}, 7 * x[1], 2)
    assert x.grad.tolist() == [2, 8]


def follows_epoch_means(kind: type[Dwa]) -> None:
    """Two losses whose epoch means fall by 1/2 and by 1/10, drowned in noise from batch to batch."""
    balancer = kind(Problem(NAMES), DwaOptions())
    assert weights(epoch(balancer, [(1.5, 0.5), (0.5, 1.5)])) == [1, 1]
    assert weights(epoch(balancer, [(0.1, 1.7), (0.9, 0.1)])) == [1, 1]
    a, b = math.exp(0.5 / 2), math.exp(0.9 / 2)
    assert weights(epoch(balancer, [(1.0, 1.0)])) == pytest.approx([2 * a / (a + b), 2 * b / (a + b)])


def test_dwa_follows_the_ratio_of_two_epochs_means_at_temperature_two() -> None:
    follows_epoch_means(Dwa)


def test_ratios_of_batches_fail() -> None:
    with pytest.raises(AssertionError):
        follows_epoch_means(LastBatch)


def draws_at_random(kind: type[RandomWeights]) -> None:
    """Softmax of two normal numbers times two: mean 1, and the difference of the logits has variance 2."""
    balancer = kind(Problem(NAMES, seed=5))
    drawn = torch.stack([balancer.weigh(step) for step in range(4000)])
    assert drawn.sum(1) == pytest.approx(2, abs=1e-5)
    assert drawn.mean(0) == pytest.approx(1, abs=0.03)
    logits = drawn.log()
    assert (logits[:, 0] - logits[:, 1]).var().item() == pytest.approx(2, rel=0.1)


def test_random_weights_are_drawn_at_every_step() -> None:
    draws_at_random(RandomWeights)


def test_equal_weights_are_not_random() -> None:
    with pytest.raises(AssertionError):
        draws_at_random(Alike)


def test_random_weights_depend_on_seed_and_step_alone() -> None:
    first, second = (RandomWeights(Problem(NAMES, seed=seed)) for seed in (0, 1))
    assert torch.equal(first.weigh(7), RandomWeights(Problem(NAMES)).weigh(7))
    assert not torch.equal(first.weigh(7), second.weigh(7)) and not torch.equal(first.weigh(7), first.weigh(8))
