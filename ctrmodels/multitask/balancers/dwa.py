"""Weights from how fast every loss fell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctrmodels import ranks
from ctrmodels.multitask.balancers.base import LossBalancer, Problem


@dataclass(frozen=True)
class DwaOptions:
    """How much.

    Attributes:
        temperature: T; the larger, the more alike the weights.
    """

    temperature: float = 2.0


class Dwa(LossBalancer):
    """Dynamic weight average: ``w_k = K softmax_k(r_k / T)`` with ``r_k = L_k(t-1) / L_k(t-2)`` of epochs' mean losses.

    "End-to-End Multi-Task Learning with Attention", CVPR 2019, equation 7. All weights are 1 in the first two epochs.
    It costs nothing, but needs several epochs to do anything.
    """

    means: Tensor
    epochs: Tensor
    weights: Tensor

    def __init__(self, problem: Problem, options: DwaOptions = DwaOptions()) -> None:
        super().__init__(problem, options)
        self.temperature = options.temperature
        k = len(problem.names)
        self.register_buffer("means", torch.ones(2, k))  # of the last epoch but one, and of the last
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("weights", torch.ones(k))

    def weigh(self, step: int) -> Tensor:
        """See :class:`LossBalancer`."""
        return self.weights

    def end_epoch(self) -> dict[str, float]:
        """See :class:`Balancer`."""
        mean = ranks.mean(self.loss_sums) / self.seen.clamp(min=1)
        self.means.copy_(torch.stack([self.means[1], mean]))
        self.epochs += 1
        if self.epochs >= 2:
            before, last = self.means
            rates = last / before.clamp(min=torch.finfo(before.dtype).tiny)
            self.weights.copy_(len(rates) * torch.softmax(rates / self.temperature, 0))
        return super().end_epoch()
