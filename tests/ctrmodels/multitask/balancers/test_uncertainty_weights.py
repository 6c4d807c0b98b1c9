"""Log-variances find the noise of their losses; what other libraries do to them does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels.multitask.balancers import Problem, Uncertainty, UncertaintyOptions

PROBLEM = Problem(("a@all", "b@all"))
NOISE = (10.0, 1.0)


class Unlearned(Uncertainty):
    """The log-variances are in no optimiser: weights stay 1."""

    def optimiser(self) -> None:
        return None


class Clamped(Uncertainty):
    """Log-variances below 0 are cut inside the loss, as torch-rechub does: no weight above 1/2, and no way back."""

    def descend(self, losses, rest, values, step) -> Tensor:
        s = self.log_variances.clamp(min=0)
        weights = 0.5 * torch.exp(-s)
        (torch.stack(list(losses)) @ weights + 0.5 * s.sum() + rest).backward()
        return weights.detach()


class WrongSign(Uncertainty):
    """Noisy losses count more."""

    def descend(self, losses, rest, values, step) -> Tensor:
        weights = 0.5 * torch.exp(self.log_variances)
        (torch.stack(list(losses)) @ weights - 0.5 * self.log_variances.sum() + rest).backward()
        return weights.detach()


def learned_noise(kind: type[Uncertainty], seed: int) -> list[float]:
    """Two lines with noise of standard deviation 10 and 1, learned by an MLP: what the balancer takes them for."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    x = rng.standard_normal((2000, 1))
    y = np.concatenate([2 * x + 8, 3 * x + 3], 1) + np.array(NOISE) * rng.standard_normal((2000, 2))
    features, labels = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    network = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 2))
    balancer = kind(PROBLEM, UncertaintyOptions(learning_rate=5e-2))
    own = balancer.optimiser()
    optimisers = [torch.optim.Adam(network.parameters(), lr=1e-2), *([] if own is None else [own])]
    for _ in range(80):
        for part in torch.from_numpy(rng.permutation(2000)).split(100):
            for optimiser in optimisers:
                optimiser.zero_grad()
            losses = (network(features[part]) - labels[part]).square().mean(0)
            balancer.backward(dict(zip(balancer.names, losses.unbind(), strict=True)), torch.zeros(()), 0)
            for optimiser in optimisers:
                optimiser.step()
    return (0.5 * balancer.log_variances).exp().tolist()


def settled(kind: type[Uncertainty], losses: tuple[float, float], steps: int = 3000) -> tuple[Uncertainty, Tensor]:
    """The balancer after ``steps`` on constant losses, and what its last step returned."""
    balancer = kind(PROBLEM, UncertaintyOptions(learning_rate=5e-2))
    drive(balancer, losses, steps)
    return balancer, drive(balancer, losses, 1)


def drive(balancer: Uncertainty, losses: tuple[float, float], steps: int) -> Tensor:
    optimiser = balancer.optimiser()
    reported = torch.zeros(())
    for step in range(steps):
        balancer.zero_grad()
        reported = balancer.backward(dict(zip(balancer.names, torch.tensor(losses).unbind(), strict=True)),
                                     torch.zeros(()), step)
        if optimiser is not None:
            optimiser.step()
    return reported


def test_the_noise_of_two_lines_is_found() -> None:
    assert learned_noise(Uncertainty, 0) == pytest.approx(NOISE, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_noise_of_two_lines_is_found_on_other_seeds(seed: int) -> None:
    assert learned_noise(Uncertainty, seed) == pytest.approx(NOISE, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Unlearned, WrongSign])
def test_broken_balancers_do_not_find_it(kind: type[Uncertainty]) -> None:
    assert learned_noise(kind, 0) != pytest.approx(NOISE, rel=0.1)


def finds_the_losses(kind: type[Uncertainty]) -> None:
    balancer, reported = settled(kind, (100.0, 0.05))
    assert balancer.log_variances.exp().tolist() == pytest.approx([100.0, 0.05], rel=0.1)
    assert reported.item() == pytest.approx(100.05)  # the balanced total would be below this, or below zero


def test_the_weights_settle_at_half_the_inverse_loss_also_where_log_variances_are_negative() -> None:
    finds_the_losses(Uncertainty)


@pytest.mark.parametrize("kind", [Unlearned, Clamped])
def test_unlearned_or_clamped_log_variances_do_not(kind: type[Uncertainty]) -> None:
    with pytest.raises(AssertionError):
        finds_the_losses(kind)


def test_the_weight_of_a_tiny_loss_is_capped_and_comes_back_when_the_loss_rises() -> None:
    balancer, _ = settled(Uncertainty, (1.0, 1e-6))
    balancer.end_epoch()
    drive(balancer, (1.0, 1e-6), 10)
    assert balancer.end_epoch()["weight.b@all"] == pytest.approx(25.0, rel=0.06)
    drive(balancer, (1.0, 1.0), 1000)
    assert balancer.log_variances.exp().tolist() == pytest.approx([1.0, 1.0], rel=0.1)


def test_at_first_the_step_is_that_of_the_plain_sum() -> None:
    balancer = Uncertainty(PROBLEM)
    x = torch.ones(2, requires_grad=True)
    losses = {"a@all": (x * torch.tensor([1.0, 2.0])).sum(), "b@all": x.square().sum()}
    reported = balancer.backward(losses, 3 * x[0], 0)
    assert reported.item() == pytest.approx(3 + 2 + 3)
    assert x.grad is not None and x.grad.tolist() == pytest.approx([1 + 2 + 3, 2 + 2])
    assert balancer.log_variances.tolist() == pytest.approx([-math.log(2)] * 2)
