"""Weights that bring the losses' gradients to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrmodels import ranks
from ctrmodels.multitask.balancers.base import Balancer, Problem
from ctrmodels.multitask.balancers.gradients import norms

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class GradNormOptions:
    """How the weights are learned.

    Attributes:
        alpha: how strongly a loss that lags behind is favoured: 0 = gradients of equal length, about 1.5 for objectives
            that learn at different speeds, about 0.1 for similar ones.
        learning_rate: of the weights' logits.
        initial_steps: a loss's progress is measured against its mean over so many first steps, in which the weights
            rest; a single batch would be too noisy.
    """

    alpha: float = 1.5
    learning_rate: float = 0.025
    initial_steps: int = 20


class GradNorm(Balancer):
    """``sum_k |G_k - mean(G) r_k^alpha|`` is minimised over the weights, the network takes ``sum_k w_k L_k``.

    "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML 2018, equations 1
    and 2: ``G_k = ||grad_W w_k L_k||`` on the last shared layer W, and ``r_k``, the loss ``L_k(t) / L_k(0)`` over the
    mean of all losses' such ratios. ``mean(G) r_k^alpha`` is a constant target. The paper scales the weights to sum
    K after each step; here they are ``w = K softmax(v)``, which cannot cross zero, with Adam on v. The sum is divided
    by ``mean(G)``, a constant: Adam remembers the size of past gradients, and would creep when they were far larger.

    W costs K more backward passes from the losses down to it, not through the network.
    """

    initial: Tensor

    def __init__(self, problem: Problem, options: GradNormOptions = GradNormOptions()) -> None:
        super().__init__(problem, options)
        self.options, self.last = options, problem.last
        self.logits = nn.Parameter(torch.zeros(len(problem.names)))
        self.register_buffer("initial", torch.zeros(len(problem.names)))  # mean losses of the first steps

    def optimiser(self) -> torch.optim.Optimizer:
        """See :class:`Balancer`."""
        return torch.optim.Adam([self.logits], lr=self.options.learning_rate)

    @property
    def weights(self) -> Tensor:
        """w [K], which sum to K."""
        return len(self.names) * torch.softmax(self.logits, 0)

    def descend(self, losses: Sequence[Tensor], rest: Tensor, values: Tensor, step: int) -> Tensor:
        """See :class:`Balancer`."""
        weights, lengths = self.weights.detach(), None
        if step >= self.options.initial_steps:
            lengths = norms(losses, self.last)
        (torch.stack(list(losses)) @ weights + rest).backward()
        values = ranks.mean(values)
        if lengths is None:
            self.initial += values / self.options.initial_steps
            self.logits.grad = torch.zeros_like(self.logits)
        else:
            self.logits.grad, = torch.autograd.grad(self.imbalance(lengths, values), self.logits)
        return weights

    def imbalance(self, lengths: Tensor, values: Tensor) -> Tensor:
        """What the weights minimise, a scalar.

        Args:
            lengths: [K] of the gradients of the unweighted losses.
            values: [K] of the losses.
        """
        weighted = self.weights * lengths
        return (weighted - self.targets(weighted, values)).abs().sum() / weighted.mean().detach().clamp(min=_TINY)

    def targets(self, weighted: Tensor, values: Tensor) -> Tensor:
        """Lengths [K] that the weighted gradients should have, constants."""
        progress = values / self.initial.clamp(min=_TINY)
        rates = progress / progress.mean().clamp(min=_TINY)
        return (weighted.mean() * rates**self.options.alpha).detach()
