"""The sum of all pairs of fields, of which none is computed."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


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
