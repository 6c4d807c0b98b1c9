"""Weights of fields and bilinear interactions of them, the two parts of FiBiNET."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

BilinearType = Literal["field_all", "field_each", "field_interaction"]


class Senet(nn.Module):
    """A weight per field, from what all fields of the row look like.

    ``a = ReLU(W_2 ReLU(W_1 z))`` with ``z_f`` the mean of ``e_f``, then ``v_f = a_f e_f``. "FiBiNET: Combining
    Feature Importance and Bilinear Feature Interaction for Click-Through Rate Prediction", RecSys 2019, section
    3.2.

    Args:
        n_fields: F.
        reduction: the squeezed layer has F / reduction units, at least one.
    """

    def __init__(self, n_fields: int, reduction: int) -> None:
        super().__init__()
        squeezed = max(1, n_fields // reduction)
        self.squeeze = nn.Linear(n_fields, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, n_fields, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, F, D]."""
        weights = self.excite(self.squeeze(fields.mean(2)).relu()).relu()  # [B, F]
        return fields * weights.to(fields.dtype).unsqueeze(2)


class BilinearProducts(nn.Module):
    """A vector per pair of fields, ``p_ij = (e_i W) * e_j`` for all i < j.

    "FiBiNET: Combining Feature Importance and Bilinear Feature Interaction for Click-Through Rate Prediction",
    RecSys 2019, section 3.3.

    Args:
        n_fields: F.
        dim: D.
        kind: one W for all (``field_all``), one per left field (``field_each``), or one per pair
            (``field_interaction``).
    """

    left: Tensor
    right: Tensor

    def __init__(self, n_fields: int, dim: int, kind: BilinearType) -> None:
        super().__init__()
        left, right = torch.tensor(list(combinations(range(n_fields), 2)), dtype=torch.long).view(-1, 2).unbind(1)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        counts = {"field_all": 1, "field_each": n_fields - 1, "field_interaction": len(left)}
        if kind not in counts:
            raise ValueError(f"a bilinear interaction is one of {', '.join(counts)}, not {kind}")
        self.kind, self.n_pairs = kind, len(left)
        self.weight = nn.Parameter(torch.empty(counts[kind], dim, dim).uniform_(-dim ** -0.5, dim ** -0.5))

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M, D] with the M pairs in the order of ``itertools.combinations``."""
        if self.kind == "field_interaction":
            mapped = torch.einsum("bmd,mde->bme", fields.index_select(1, self.left), self.weight)
        else:  # a field's map is the same in all of its pairs: computed once
            weight = self.weight.expand(fields.shape[1] - 1, -1, -1)
            mapped = torch.einsum("bfd,fde->bfe", fields[:, :-1], weight).index_select(1, self.left)
        return mapped.to(fields.dtype) * fields.index_select(1, self.right)

    def flops(self, n_fields: int) -> int:
        """Operations per row: the maps and the products."""
        dim = self.weight.shape[1]
        maps = self.n_pairs if self.kind == "field_interaction" else n_fields - 1
        return 2 * maps * dim * dim + self.n_pairs * dim
