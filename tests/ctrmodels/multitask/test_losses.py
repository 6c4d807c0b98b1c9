from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch.nn.functional import logsigmoid

from ctrmodels.multitask.losses import cross_entropy, log1mexp


def exact_log1mexp(x: float) -> float:
    """60 digits of log(1 - exp(x)) for the float32 nearest to x."""
    with localcontext() as context:
        context.prec = 120
        return float((1 - Decimal(x).exp()).ln())


@pytest.mark.parametrize("x", [-1e-30, -1e-12, -1e-6, -0.1, -0.6, -math.log(2), -0.7, -1.0, -5.0, -17.0, -40.0])
def test_log1mexp_has_full_relative_precision_on_both_sides_of_log_two(x: float) -> None:
    value = torch.tensor(x)
    assert log1mexp(value).item() == pytest.approx(exact_log1mexp(value.item()), rel=5e-7)


def test_log1mexp_has_the_gradient_of_its_definition() -> None:
    x = -torch.logspace(-6, 1, 30, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(log1mexp, (x,), eps=1e-9, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("logit", [-60.0, -20.0, -3.0, 0.0, 0.5, 20.0, 60.0, 85.0])
@pytest.mark.parametrize("label", [0.0, 0.25, 1.0])
def test_cross_entropy_of_one_head_equals_the_logit_form_also_at_extremes(logit: float, label: float) -> None:
    a = torch.tensor(logit, requires_grad=True)
    loss = cross_entropy(logsigmoid(a), torch.tensor(label))
    loss.backward()
    with localcontext() as context:
        context.prec = 120
        z = Decimal(logit)
        p = 1 / (1 + (-z).exp())
        exact = float(-(Decimal(label) * p.ln() + Decimal(1 - label) * (1 - p).ln()))
        slope = float(p - Decimal(label))
    assert loss.item() == pytest.approx(exact, rel=1e-6)
    assert a.grad is not None and a.grad.item() == pytest.approx(slope, rel=1e-5, abs=1e-30)


def test_cross_entropy_of_a_product_of_rare_events_keeps_its_gradient() -> None:
    """A click of 1e-20 times a conversion of 1e-20 is below float32's smallest normal number; its logarithm is not."""
    a, b = (torch.tensor(-46.0, requires_grad=True) for _ in range(2))
    loss = cross_entropy(logsigmoid(a) + logsigmoid(b), torch.tensor(1.0))
    loss.backward()
    assert loss.item() == pytest.approx(92.0, rel=1e-6)
    assert a.grad is not None and a.grad.item() == pytest.approx(-1.0, rel=1e-6)


def test_cross_entropy_of_a_product_equals_the_naive_form_where_that_is_exact() -> None:
    a, b = torch.linspace(-5, 5, 50, dtype=torch.float64), torch.linspace(4, -3, 50, dtype=torch.float64)
    p = a.sigmoid() * b.sigmoid()
    label = (torch.arange(50) % 2).double()
    naive = torch.nn.functional.binary_cross_entropy(p, label, reduction="none")
    torch.testing.assert_close(cross_entropy(logsigmoid(a) + logsigmoid(b), label), naive, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, 200.0, 1e4])
def test_a_probability_that_rounds_to_zero_or_one_gives_finite_loss_and_gradient(logit: float, label: float) -> None:
    a = torch.tensor(logit, requires_grad=True)
    loss = cross_entropy(logsigmoid(a), torch.tensor(label))
    loss.backward()
    assert a.grad is not None and loss.isfinite() and a.grad.isfinite()
