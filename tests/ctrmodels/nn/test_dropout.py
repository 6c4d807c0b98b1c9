"""Dropout drops the share that it was given, keeps the mean, and is off in evaluation."""

from __future__ import annotations

import pytest
import torch

from ctrmodels.nn.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_the_share_of_zeros_is_p_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(500, 333))
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert out[out != 0].unique().item() == pytest.approx(1 / (1 - p), rel=1e-3)


def test_values_are_dropped_independently() -> None:
    torch.manual_seed(0)
    zero = (Dropout(0.5)(torch.ones(100_000, 4)) == 0).float()
    assert torch.corrcoef(zero.T).sub(torch.eye(4)).abs().max() < 0.02


def test_gradients_flow_through_kept_values_alone() -> None:
    x = torch.ones(1001, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_evaluation_and_no_dropout_leave_values_alone() -> None:
    x = torch.randn(7)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_an_impossible_share_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        Dropout(p)
