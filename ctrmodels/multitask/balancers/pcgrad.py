"""Gradients that no longer point against each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctrmodels.multitask.balancers.base import GradientBalancer, Problem


class PCGrad(GradientBalancer):
    """Projecting conflicting gradients: every loss's gradient gives up what points against the others'.

    For every loss i: ``g = g_i``; for the other losses j in random order, if ``g . g_j < 0``:
    ``g -= (g . g_j / ||g_j||^2) g_j`` with j's *own* gradient, not its projection. The step takes the sum over i.
    "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.

    Every projected gradient is a combination of the g_j, so that the algorithm runs on the K x K inner products. The
    order depends on seed and step alone. ``conflicts`` of the epoch is the share of the pairs of losses with
    ``g_i . g_j < 0``.
    """

    conflict_sums: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.register_buffer("conflict_sums", torch.zeros(()))

    def combine(self, gram: Tensor, values: Tensor, step: int) -> Tensor:
        """See :class:`GradientBalancer`."""
        products, k = gram.numpy(), len(gram)
        random = np.random.default_rng((self.seed, step))
        total = np.zeros(k)
        for i in range(k):
            own = np.eye(k)[i]  # the projected gradient's share of every g_j
            for j in random.permutation(k):
                along = float(own @ products[j])
                if j != i and along < 0:
                    own[j] -= along / products[j, j]
            total += own
        self.conflict_sums += float((products < 0).sum() / max(k * (k - 1), 1))
        return torch.from_numpy(total)

    def record(self) -> dict[str, float]:
        """See :class:`Balancer`."""
        return {**super().record(), "conflicts": float(self.conflict_sums / self.seen.clamp(min=1))}
