"""Normalisation over the batch, whichever ranks its rows are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

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

    def follow(self, centre: Tensor, variance: Tensor, n: Tensor | int) -> None:
        """Move the running statistics towards those of ``n`` rows."""
        follow([self], [centre], [variance], n)


@torch.no_grad()
def follow(norms: Sequence[BatchNorm], centres: Sequence[Tensor], variances: Sequence[Tensor], n: Tensor | int) -> None:
    """Move the running statistics of ``norms``, which have one momentum, towards those of ``n`` rows."""
    momentum, = {norm.momentum for norm in norms}
    assert momentum is not None
    if isinstance(n, int) and n < 2:
        raise ValueError(f"batch statistics of {n} rows: it takes two or more")
    torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)
    running = [cast(Tensor, norm.running_mean) for norm in norms], [cast(Tensor, norm.running_var) for norm in norms]
    torch._foreach_lerp_([*running[0], *running[1]], [*centres, *(v * (n / (n - 1)) for v in variances)], momentum)
