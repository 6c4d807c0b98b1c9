"""Pruned tables as serving keeps them: pruned values take no memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.nn.table import PaddedLookup, Table


class PackedTable(nn.Module):
    """V rows of width D of which only the kept values are stored, one bit per value, and one number per row.

    Takes the place of a masked :class:`Table` where a model is exported; it cannot be trained.

    Attributes:
        values: float32 [1 + kept], a zero, which every pruned value reads, and the kept values row after row.
        starts: int32 [V, 1], number of values kept in the rows before.
        bits: uint8 [V, ceil(D / 8)], a bit per value, the lowest bit first; 1 = kept.
        powers: uint8 [8], the bits of a byte.
    """

    values: Tensor
    starts: Tensor
    bits: Tensor
    powers: Tensor

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.width = mask.shape[1]
        powers = 1 << torch.arange(8, dtype=torch.uint8)
        padded = F.pad(mask, (0, -self.width % 8)).unflatten(1, (-1, 8))  # [V, ceil(D / 8), 8]
        kept = mask.sum(1, keepdim=True)
        self.register_buffer("values", torch.cat([weight.new_zeros(1), weight[mask]]))
        self.register_buffer("starts", (kept.cumsum(0) - kept).int())
        self.register_buffer("bits", (padded * powers).sum(2, dtype=torch.uint8))
        self.register_buffer("powers", powers)

    @classmethod
    def of(cls, table: Table) -> PackedTable:
        """The values of ``table`` that its mask keeps."""
        if table.mask is None:
            raise ValueError("a table without a mask has nothing to pack")
        return cls(table.weight.detach().cpu(), table.mask.cpu())

    def rows(self, index: Tensor) -> Tensor:
        """Row numbers [B, T] → rows [B, T, D]."""
        bits = F.embedding(index, self.bits).unsqueeze(-1).bitwise_and(self.powers)  # [B, T, ceil(D / 8), 8]
        kept = bits.bool().int().flatten(2)[..., :self.width]
        # A value's place is the number of values kept up to it; that of a pruned value is 0.
        place = (F.embedding(index, self.starts) + kept.cumsum(2, dtype=torch.int32)) * kept
        return self.values.index_select(0, place.flatten()).view(place.shape)

    def forward(self, lookup: PaddedLookup) -> Tensor:
        """Mean of each bag's rows, zero for an empty bag: [B, F, D]."""
        return lookup.means(self.rows)
