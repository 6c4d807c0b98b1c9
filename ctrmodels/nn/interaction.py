"""Explicit pair interactions, all from one Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrmodels.archspec import Interaction


class PairProducts(nn.Module):
    """Inner products of chosen pairs of fields.

    The Gram matrix of a batch holds every pair at once, so that 741 pairs of 39 fields cost one batched
    matrix product instead of 741 gathered copies.
    """

    left: Tensor
    right: Tensor

    def __init__(self, interactions: Sequence[Interaction]) -> None:
        super().__init__()
        if any(len(i.fields) != 2 for i in interactions):
            raise ValueError("an inner product has two fields")
        self.register_buffer("left", torch.tensor([i.fields[0] for i in interactions], dtype=torch.long),
                             persistent=False)
        self.register_buffer("right", torch.tensor([i.fields[1] for i in interactions], dtype=torch.long),
                             persistent=False)

    def __len__(self) -> int:
        return self.left.numel()

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        gram = torch.bmm(fields, fields.transpose(1, 2))  # [B, F, F]
        return gram[:, self.left, self.right]
