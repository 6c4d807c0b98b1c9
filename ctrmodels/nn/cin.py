"""Compressed interaction network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_VALUES = {"cpu": 1 << 19, "cuda": 1 << 25}  # of products at a time: what a core's cache holds, what fills a GPU


class CIN(nn.Module):
    """Vector-wise interactions whose order rises by one per layer.

    ``x^k_h = sum_ij W^k_hij (x^{k-1}_i * x^0_j)`` with ``x^0_j = e_j``; the output is the sum over D of every x^k_h.
    "xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems", KDD 2018, section 3.2,
    with the identity as activation, which the paper found best.

    A layer's products of all rows, [B, H * F, D], never lie in memory together. The last layer is needed as its sum
    over D only, ``sum_ij W_hij <x_i, x^0_j>``, which takes inner products alone: D times fewer operations. The
    others work on some rows at a time and compute those products again for the gradient.

    Args:
        n_fields: F.
        layers: vectors per layer, H_1 .. H_K.

    Attributes:
        width: of the output, H_1 + .. + H_K.
    """

    def __init__(self, n_fields: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        for before, after in pairwise((n_fields, *layers)):
            bound = (before * n_fields) ** -0.5
            self.weights.append(nn.Parameter(torch.empty(after, before * n_fields).uniform_(-bound, bound)))
        self.width = sum(layers)

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, width]."""
        first = fields.transpose(1, 2).contiguous()  # [B, D, F]
        x, sums = first, []
        *inner, last = self.weights
        for weight in inner:
            x = _layer(x, first, weight)
            sums.append(x.sum(1))
        products = torch.bmm(x.transpose(1, 2), first)  # [B, H, F]
        return torch.cat([*sums, F.linear(products.flatten(1), last)], 1)

    def flops(self, dim: int) -> int:
        """Operations per row."""
        *inner, last = self.weights
        products = last.shape[1] * 2 * dim + 2 * last.numel()
        return products + sum(dim * (w.shape[1] + 2 * w.numel() + w.shape[0]) for w in inner)


def _layer(x: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    """[B, D, H] and [B, D, F] → [B, D, H']."""
    if torch.compiler.is_exporting():  # the number of rows is not known
        return _compress(x, first, weight)
    rows = max(1, _VALUES[x.device.type] // (x.shape[1] * weight.shape[1]))
    return torch.cat([cast(Tensor, checkpoint(_compress, a, b, weight, use_reentrant=False, preserve_rng_state=False))
                      for a, b in zip(x.split(rows), first.split(rows), strict=True)])


def _compress(x: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    products = x.unsqueeze(3) * first.unsqueeze(2)  # [b, D, H, F]
    return F.linear(products.flatten(2), weight)
