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
