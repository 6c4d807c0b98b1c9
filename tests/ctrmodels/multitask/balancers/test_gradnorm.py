"""GradNorm brings weighted gradients to the lengths that its targets ask for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctrmodels.multitask.balancers import GradNorm, GradNormOptions, Problem

NAMES = ("a@all", "b@all")


class MeanRate(GradNorm):
    """torch-rechub's: the mean ratio to the power of alpha, which gives all losses the same target."""

    def targets(self, weighted: Tensor, values: Tensor) -> Tensor:
        return (weighted.mean() * (values / self.initial).mean() ** self.options.alpha).detach().expand_as(weighted)


class Attached(GradNorm):
    """The targets are not constants: they shrink with the weights instead of being reached."""

    def targets(self, weighted: Tensor, values: Tensor) -> Tensor:
        progress = values / self.initial
        return weighted.mean() * (progress / progress.mean()) ** self.options.alpha


class Resting(GradNorm):
    """The plain sum."""

    def imbalance(self, lengths: Tensor, values: Tensor) -> Tensor:
        return 0 * super().imbalance(lengths, values)


def weighted_lengths(kind: type[GradNorm], alpha: float, lengths: tuple[float, float], later: tuple[float, float],
                     steps: int = 400) -> tuple[Tensor, Tensor]:
    """Losses that start at 1 and are ``later`` from step 20 on, with gradients of constant ``lengths``.

    Returns:
        Weights, and lengths of the weighted gradients, both [2].
    """
    layer = nn.Parameter(torch.zeros(3))
    balancer = kind(Problem(NAMES, (layer,), (layer,)), GradNormOptions(alpha=alpha))
    optimiser = balancer.optimiser()
    for step in range(steps):
        layer.grad = None
        balancer.zero_grad()
        values = (1.0, 1.0) if step < 20 else later
        balancer.backward({name: value + length * layer[k]
                           for k, (name, value, length) in enumerate(zip(NAMES, values, lengths, strict=True))},
                          torch.zeros(()), step)
        optimiser.step()
    weights = balancer.weights.detach()
    return weights, weights * torch.tensor(lengths)


def evens_out(kind: type[GradNorm]) -> None:
    """One loss is the other times 100: with alpha = 0 the weights must undo it."""
    weights, lengths = weighted_lengths(kind, 0.0, (100.0, 1.0), (1.0, 1.0))
    assert 0.8 <= lengths[0] / lengths[1] <= 1.25
    assert 0.8 <= 100 * weights[0] / weights[1] <= 1.2
    assert weights.sum().item() == pytest.approx(2, abs=1e-5)


def favours_the_slow(kind: type[GradNorm]) -> None:
    """At losses of 0.2 and 0.9 the targets of alpha = 1.5 are 0.22 and 2.09 of the mean length; they are met by the
    first loss, and the ratio is then 8.1."""
    weights, lengths = weighted_lengths(kind, 1.5, (100.0, 1.0), (0.2, 0.9))
    assert 6.5 <= lengths[1] / lengths[0] <= 10
    assert weights.sum().item() == pytest.approx(2, abs=1e-5)


def test_without_a_preference_all_weighted_gradients_become_equally_long() -> None:
    evens_out(GradNorm)


def test_a_loss_that_lags_behind_gets_the_longer_gradient() -> None:
    favours_the_slow(GradNorm)


def test_the_plain_sum_fails_both() -> None:
    for check in (evens_out, favours_the_slow):
        with pytest.raises(AssertionError):
            check(Resting)


def test_one_target_for_all_losses_fails_where_the_losses_differ_in_speed() -> None:
    evens_out(MeanRate)
    with pytest.raises(AssertionError):
        favours_the_slow(MeanRate)


def test_targets_that_are_no_constants_fail_as_well() -> None:
    with pytest.raises(AssertionError):
        favours_the_slow(Attached)


def test_progress_is_measured_against_the_mean_of_the_first_steps_in_which_the_weights_rest() -> None:
    layer = nn.Parameter(torch.ones(2))
    balancer = GradNorm(Problem(NAMES, (layer,), (layer,)), GradNormOptions(initial_steps=4))
    for step in range(4):
        layer.grad = None
        balancer.backward({"a@all": (0.5 + step % 2) * layer[0], "b@all": 2 * layer[1]}, torch.zeros(()), step)
        assert balancer.logits.grad.tolist() == [0, 0]
        assert layer.grad.tolist() == [0.5 + step % 2, 2]
    assert balancer.initial.tolist() == pytest.approx([1, 2])
