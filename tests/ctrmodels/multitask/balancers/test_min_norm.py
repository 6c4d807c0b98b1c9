"""The shortest combination of gradients ends on the front, where its bounds say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels.errors import InputError
from ctrmodels.multitask.balancers import (
    GradientBalancer,
    Mgda,
    MgdaOptions,
    Pareto,
    ParetoOptions,
    Problem,
    build_balancer,
)

NAMES = ("a@all", "b@all")


class Fixed(Mgda):
    """Equal weights."""

    def combine(self, gram: Tensor, values: Tensor, step: int) -> Tensor:
        return torch.ones(len(gram), dtype=torch.float64)


def where(balancer: GradientBalancer, x: nn.Parameter) -> float:
    """Position on the segment from a = (0, 0) to b = (2, 1), which is the front of both squared distances, after
    gradient steps from (1.5, -2)."""
    a, b = torch.zeros(2), torch.tensor([2.0, 1.0])
    for step in range(1000):
        x.grad = None
        balancer.backward({"a@all": (x - a).square().sum(), "b@all": (x - b).square().sum()}, torch.zeros(()),
                          100 + step)
        with torch.no_grad():
            x -= 0.02 * x.grad
    position = float(x.detach() @ b / (b @ b))
    assert (x.detach() - position * b).norm() < 1e-4  # on the segment
    return position


def start() -> tuple[nn.Parameter, Problem]:
    x = nn.Parameter(torch.tensor([1.5, -2.0]))
    return x, Problem(NAMES, (x,))


def ends_at_the_projection_of_the_start(kind: type[Mgda]) -> None:
    x, problem = start()
    assert where(kind(problem), x) == pytest.approx(0.2, abs=1e-3)


def test_without_bounds_the_end_is_the_projection_of_the_start() -> None:
    ends_at_the_projection_of_the_start(Mgda)


def test_fixed_weights_end_elsewhere() -> None:
    with pytest.raises(AssertionError):
        ends_at_the_projection_of_the_start(Fixed)


@pytest.mark.parametrize(("bounds", "expected"), [((0.0, 0.7), 0.7), ((0.9, 0.0), 0.1), ((0.1, 0.5), 0.5)])
def test_bounds_choose_the_part_of_the_front(bounds: tuple[float, float], expected: float) -> None:
    x, problem = start()
    balancer = Pareto(problem, ParetoOptions(dict(zip("ab", bounds, strict=True)), memory=0.0))
    balancer.initial.fill_(1.0)  # losses as they are
    assert where(balancer, x) == pytest.approx(expected, abs=1e-3)


def test_losses_count_relative_to_their_first_values() -> None:
    """A loss measured in other units, 100 times as large, gets the same relative weight."""
    found = []
    for scale in (1.0, 100.0):
        x = nn.Parameter(torch.tensor([1.0, 1.0]))
        balancer = Pareto(Problem(NAMES, (x,)), ParetoOptions(memory=0.0, initial_steps=2))
        for step in range(3):
            x.grad = None
            balancer.backward({"a@all": scale * x[0].square(), "b@all": x[1].square() + 0.5 * x[0]},
                              torch.zeros(()), step)
        found.append(balancer.current)
    torch.testing.assert_close(found[0], found[1])


def test_memory_keeps_a_share_of_the_old_weights() -> None:
    x = nn.Parameter(torch.ones(2))
    balancer = Pareto(Problem(NAMES, (x,)), ParetoOptions(memory=0.75))
    balancer.initial.fill_(1.0)
    balancer.backward({"a@all": x[0] + 0 * x[1], "b@all": 3 * x[0]}, torch.zeros(()), 100)
    assert balancer.current.tolist() == pytest.approx([0.75 * 0.5 + 0.25, 0.75 * 0.5])


@pytest.mark.parametrize(("normalisation", "shares"), [("none", (0.9, 0.1)), ("l2", (0.5, 0.5)), ("loss", (0.9, 0.1)),
                                                       ("both", (0.5, 0.5))])
def test_gradients_are_compared_on_the_scale_asked_for(normalisation, shares: tuple[float, float]) -> None:
    """Of orthogonal gradients of length 1 and 3 the shares are inverse to the squared lengths; losses are equal."""
    x = nn.Parameter(torch.ones(2))
    balancer = Mgda(Problem(NAMES, (x,)), MgdaOptions(normalisation))
    balancer.backward({"a@all": x[0], "b@all": 3 * x[1] - 2}, torch.zeros(()), 0)
    lengths = np.array([1.0, 3.0]) if normalisation in ("l2", "both") else np.ones(2)
    weights = 2 * lengths.mean() * np.array(shares) / lengths
    assert x.grad.tolist() == pytest.approx([weights[0], 3 * weights[1]], rel=1e-4)


def test_equal_gradients_give_the_step_of_the_plain_sum() -> None:
    x = nn.Parameter(torch.ones(2))
    Mgda(Problem(NAMES, (x,))).backward({"a@all": x.sum(), "b@all": x.sum()}, torch.zeros(()), 0)
    assert x.grad.tolist() == pytest.approx([2.0, 2.0], rel=1e-4)


@pytest.mark.parametrize("normalisation", ["none", "l2", "loss", "both"])
def test_a_loss_without_rows_in_the_batch_does_not_stop_the_others(normalisation) -> None:
    x = nn.Parameter(torch.ones(2))
    balancer = Mgda(Problem(NAMES, (x,)), MgdaOptions(normalisation))
    balancer.backward({"a@all": x.sum(), "b@all": 0 * x.sum()}, torch.zeros(()), 0)
    assert x.grad.tolist() == pytest.approx([1.0, 1.0])


class TwoLosses:
    loss_names = NAMES

    def shared_parameters(self) -> list[nn.Parameter]:
        return [nn.Parameter(torch.zeros(1))]

    last_shared_layer = shared_parameters


def test_bounds_that_leave_no_choice_or_name_nobody_are_refused() -> None:
    with pytest.raises(InputError, match="leave nothing to choose"):
        build_balancer("pareto", TwoLosses(), ParetoOptions({"a": 0.5, "b": 0.5}))
    with pytest.raises(InputError, match=r"pareto\.bounds = 'c': no such objective; use a, b"):
        build_balancer("pareto", TwoLosses(), ParetoOptions({"c": 0.5}))
    with pytest.raises(InputError, match="unknown balancer"):
        build_balancer("magic", TwoLosses())
