"""Weights that grow or shrink from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrmodels.multitask.balancers.base import LossBalancer, Problem


@dataclass(frozen=True)
class DecayOptions:
    """How fast.

    Attributes:
        factors: objective → factor per epoch; 1 where absent. Between 0.9 and 1.1 is usual.
    """

    factors: Mapping[str, float] = field(default_factory=dict)


class Decay(LossBalancer):
    """``w_k(t) = gamma_k^t`` in epoch t = 0, 1, …

    "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized Recommendations",
    RecSys 2020, equation 10. What the weights start from, ``w_k,0``, is part of the model's losses
    (``ModelConfig.loss_weights``).
    """

    factors: Tensor
    weights: Tensor

    def __init__(self, problem: Problem, options: DecayOptions = DecayOptions()) -> None:
        super().__init__(problem, options)
        factors = [options.factors.get(name.partition("@")[0], 1.0) for name in problem.names]
        self.register_buffer("factors", torch.tensor(factors), persistent=False)
        self.register_buffer("weights", torch.ones(len(factors)))

    def weigh(self, step: int) -> Tensor:
        """See :class:`LossBalancer`."""
        return self.weights

    def end_epoch(self) -> dict[str, float]:
        """See :class:`Balancer`."""
        self.weights *= self.factors
        return super().end_epoch()
