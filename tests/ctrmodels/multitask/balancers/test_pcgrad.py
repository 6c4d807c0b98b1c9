"""PCGrad against its closed form and against the published algorithm on whole vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels.multitask.balancers import GradientBalancer, PCGrad, Problem


class Chained(PCGrad):
    """Projects on gradients that were projected themselves."""

    def combine(self, gram: Tensor, values: Tensor, step: int) -> Tensor:
        products, k = gram.numpy(), len(gram)
        random, own = np.random.default_rng((self.seed, step)), np.eye(k)
        for i in range(k):
            for j in random.permutation(k):
                along = own[i] @ products @ own[j]
                if j != i and along < 0:
                    own[i] -= along / (own[j] @ products @ own[j]) * own[j]
        return torch.from_numpy(own.sum(0))


class Mean(PCGrad):
    """The mean instead of the sum."""

    def combine(self, gram: Tensor, values: Tensor, step: int) -> Tensor:
        return super().combine(gram, values, step) / len(gram)


class Sum(PCGrad):
    """No surgery."""

    def combine(self, gram: Tensor, values: Tensor, step: int) -> Tensor:
        return torch.ones(len(gram), dtype=torch.float64)


def combined(kind: type[GradientBalancer], gradients: np.ndarray, step: int = 0, seed: int = 0
             ) -> tuple[np.ndarray, GradientBalancer]:
    """What a step makes of losses with ``gradients`` [K, P]."""
    x = nn.Parameter(torch.zeros(gradients.shape[1]))
    names = tuple(f"{k}@all" for k in range(len(gradients)))
    balancer = kind(Problem(names, (x,), seed=seed))
    losses = torch.from_numpy(gradients).float() @ x
    balancer.backward(dict(zip(names, losses.unbind(), strict=True)), torch.zeros(()), step)
    return x.grad.numpy(), balancer


def published(gradients: np.ndarray, step: int, seed: int) -> np.ndarray:
    """Algorithm 1 of the paper, on the vectors."""
    random, total = np.random.default_rng((seed, step)), np.zeros(gradients.shape[1])
    for i, gradient in enumerate(gradients):
        g = gradient.copy()
        for j in random.permutation(len(gradients)):
            if j != i and g @ gradients[j] < 0:
                g -= g @ gradients[j] / (gradients[j] @ gradients[j]) * gradients[j]
        total += g
    return total


def gives_the_closed_form(kind: type[GradientBalancer]) -> None:
    """g1 = (1, 0) and g2 = (-1, 1) become (.5, .5) and (0, 1)."""
    for order in ([[1, 0], [-1, 1]], [[-1, 1], [1, 0]]):
        for step in range(4):
            assert combined(kind, np.array(order, float), step)[0] == pytest.approx([0.5, 1.5])


def is_the_published_algorithm(kind: type[GradientBalancer]) -> None:
    random = np.random.default_rng(0)
    for step in range(50):
        gradients = random.standard_normal((4, 5))
        assert combined(kind, gradients, step, seed=3)[0] == pytest.approx(published(gradients, step, 3), abs=1e-4)


def test_two_gradients_in_conflict() -> None:
    gives_the_closed_form(PCGrad)


def test_four_gradients_in_random_order() -> None:
    is_the_published_algorithm(PCGrad)


@pytest.mark.parametrize("kind", [Chained, Mean, Sum])
def test_other_rules_fail(kind: type[GradientBalancer]) -> None:
    with pytest.raises(AssertionError):
        gives_the_closed_form(kind)
        is_the_published_algorithm(kind)


def test_gradients_without_a_conflict_are_added_up() -> None:
    assert combined(PCGrad, np.array([[1.0, 0.5], [0.2, 3.0]]))[0] == pytest.approx([1.2, 3.5])


def test_a_gradient_of_zero_changes_nothing() -> None:
    assert combined(PCGrad, np.array([[1.0, 0.5], [0.0, 0.0]]))[0] == pytest.approx([1.0, 0.5])


def test_the_rate_of_conflicts_is_recorded() -> None:
    """One of three pairs points against each other."""
    gradients = np.array([[1.0, 0.0], [-1.0, 0.1], [0.0, 1.0]])
    assert combined(PCGrad, gradients)[1].end_epoch()["conflicts"] == pytest.approx(1 / 3)


def test_the_order_depends_on_seed_and_step_alone() -> None:
    gradients = np.random.default_rng(1).standard_normal((5, 3))
    found = [combined(PCGrad, gradients, step)[0] for step in (0, 1, 2, 3, 0)]
    assert np.array_equal(found[0], found[4])
    assert any(not np.allclose(found[0], other) for other in found[1:4])
