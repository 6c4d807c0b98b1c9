"""Normalisation over the batch, whichever ranks its rows are on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctrmodels import ranks


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation without scale and shift, in float32, with the statistics of the batch on all ranks.

    ``torch.nn.SyncBatchNorm`` does the same, but not on a CPU.
    """

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(width, eps=eps, momentum=momentum, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, W] → [B, W]."""
        x = x.float()
        if not self.training or ranks.count() == 1:
            return super().forward(x)
        centre, variance = self.statistics(x)
        return (x - centre) * (variance + self.eps).rsqrt()

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [W] of the columns over all ranks, which the running ones follow."""
        n = ranks.mean(x.new_tensor(float(len(x)))) * ranks.count()
        centre = ranks.mean(x.sum(0)) * ranks.count() / n
        variance = ranks.mean((x - centre).square().sum(0)) * ranks.count() / n
        self.follow(centre, variance, n)
        return centre, variance

    @torch.no_grad()
    def follow(self, centre: Tensor, variance: Tensor, n: Tensor | int) -> None:
        """Move the running statistics towards those of ``n`` rows."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        self.running_mean.lerp_(centre, self.momentum)
        self.running_var.lerp_(variance * n / (n - 1), self.momentum)
