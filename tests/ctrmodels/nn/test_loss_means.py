"""An objective's loss counts its own rows only."""

from __future__ import annotations

import torch

from ctrmodels.nn.losses import masked_mean


def test_masked_mean_divides_by_the_rows_inside_and_gives_none_to_those_outside() -> None:
    values = torch.tensor([1.0, 5.0, float("nan"), 3.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad is not None and values.grad.tolist() == [0.5, 0.0, 0.0, 0.5]


def test_masked_mean_of_no_rows_is_zero_and_differentiable() -> None:
    values = torch.ones(3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0 and values.grad is not None and not values.grad.any()
