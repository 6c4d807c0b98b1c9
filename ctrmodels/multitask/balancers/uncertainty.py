"""Weights from the noise of every loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrmodels.multitask.balancers.base import Balancer, Problem


@dataclass(frozen=True)
class UncertaintyOptions:
    """How the noise is learned.

    Attributes:
        learning_rate: of the log-variances; about ten times that of the layers. If it is too small they are still on
            their way when the training ends.
        max_weight: largest weight of a loss. The loss of a rare event is small, and 1/(2 L) would shake the trunk.
    """

    learning_rate: float = 1e-2
    max_weight: float = 25.0


class Uncertainty(Balancer):
    """``sum_k exp(-s_k) L_k / 2 + s_k / 2`` over the network and the log-variances ``s_k = log sigma_k^2``.

    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR 2018, equation 7. The
    minimum in s is ``exp(s_k) = L_k``, a weight of ``1 / (2 L_k)``: relative progress counts alike, whatever the
    losses' scales. The paper's form for a classification, ``exp(-s) L + s / 2``, is the same with s shifted by log 2.
    Of a cross-entropy, which has no noise to estimate, it is a heuristic.

    The total falls below zero when losses are small, and rightly: ``s`` is not kept from being negative. Only its
    *value* is kept above ``-log(2 max_weight)``, after the step: clamped inside the loss it would lose its gradient
    there and never come back. All weights are 1 at first, as in the plain sum.
    """

    def __init__(self, problem: Problem, options: UncertaintyOptions = UncertaintyOptions()) -> None:
        super().__init__(problem, options)
        self.options = options
        self.log_variances = nn.Parameter(torch.full((len(problem.names),), -math.log(2.0)))

    def optimiser(self) -> torch.optim.Optimizer:
        """See :class:`Balancer`."""
        return torch.optim.Adam([self.log_variances], lr=self.options.learning_rate)

    def descend(self, losses: Sequence[Tensor], rest: Tensor, values: Tensor, step: int) -> Tensor:
        """See :class:`Balancer`."""
        with torch.no_grad():
            self.log_variances.clamp_(min=-math.log(2.0 * self.options.max_weight))
        weights = 0.5 * torch.exp(-self.log_variances)
        (torch.stack(list(losses)) @ weights + 0.5 * self.log_variances.sum() + rest).backward()
        return weights.detach()
