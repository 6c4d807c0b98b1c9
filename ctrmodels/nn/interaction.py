"""Explicit interactions of fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctrmodels.archspec import Interaction


class PairProducts(nn.Module):
    """Inner products of chosen pairs of fields.

    The Gram matrix of a batch holds every pair at once, so that 741 pairs of 39 fields cost one batched
    matrix product instead of 741 gathered copies.
    """

    cells: Tensor

    def __init__(self, interactions: Sequence[Interaction], n_fields: int) -> None:
        super().__init__()
        if any(len(i.fields) != 2 for i in interactions):
            raise ValueError("an inner product has two fields")
        cells = [i.fields[0] * n_fields + i.fields[1] for i in interactions]
        self.register_buffer("cells", torch.tensor(cells, dtype=torch.long), persistent=False)

    def __len__(self) -> int:
        return self.cells.numel()

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        gram = torch.bmm(fields, fields.transpose(1, 2))  # [B, F, F]
        return gram.flatten(1).index_select(1, self.cells)


class _PairInnerSum(torch.autograd.Function):
    """Forward and backward read the fields once each and write no product of their size."""

    @staticmethod
    def forward(ctx: Any, fields: Tensor) -> Tensor:
        total = fields.sum(1)  # [B, D]
        ctx.save_for_backward(fields, total)
        norm = torch.linalg.vector_norm(fields.flatten(1), dim=1)  # [B]
        return 0.5 * (total.square().sum(1) - norm.square())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        fields, total = ctx.saved_tensors
        g = gradients[0].view(-1, 1, 1)
        return torch.addcmul(g * total.unsqueeze(1), fields, g, value=-1)


def pair_inner_sum(fields: Tensor) -> Tensor:
    """Sum over all pairs of fields of their inner products, in time linear in the number of fields.

    ``sum_{i<j} <e_i, e_j> = (|sum_i e_i|^2 - sum_i |e_i|^2) / 2``; "Factorization Machines", ICDM 2010, lemma 3.1.
    [B, F, D] → [B].
    """
    return cast(Tensor, _PairInnerSum.apply(fields))


class CrossNet(nn.Module):
    """Cross layers ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l``, each of which raises the order of interactions by one.

    "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems", WWW
    2021, equation 1, with full matrices.

    Args:
        width: W.
        layers: number of cross layers.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, W] → [B, W]."""
        crossed = x
        for layer in self.layers:
            crossed = torch.addcmul(crossed, x, layer(crossed).to(x.dtype))
        return crossed
