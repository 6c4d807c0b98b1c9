"""Losses on log-probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# log(1 - exp(x)) is finite up to here: the largest x whose 1 - exp(x) is a normal float32.
_CLOSEST_TO_ZERO = -torch.finfo(torch.float32).tiny


def log1mexp(log_p: Tensor) -> Tensor:
    """``log(1 - exp(log_p))`` for ``log_p <= 0``, without cancellation; same shape.

    Near 0 it is ``log(-expm1(x))``, further away ``log1p(-exp(x))``; both keep full relative precision on
    their side of ``-log 2``. ``log_p = 0``, a probability that rounds to one, is taken as the closest normal
    number below, so that value and gradient stay finite.
    """
    x = log_p.clamp(max=_CLOSEST_TO_ZERO)
    near = x > -math.log(2.0)
    # The branch not taken gets an argument of its own: its gradient is multiplied by 0, and must be finite.
    half = torch.full_like(x, -math.log(2.0))
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, x, half))),
                       torch.log1p(-torch.exp(torch.where(near, half, x))))


def cross_entropy(log_p: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of every row from the log-probability of the positive class; same shape.

    A product of probabilities is a sum of logarithms here, so the joint probability of rare events neither
    underflows nor needs clamping, which would bias it.
    """
    return -(label * log_p + (1.0 - label) * log1mexp(log_p))
