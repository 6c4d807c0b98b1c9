"""Fields laid side by side, as an MLP reads them, and the sum of their pairs on the way.

Notation: B rows, F fields, D width, N numeric values, W = F*D + N, rounded up by :func:`flat_width`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ctrmodels.native import compiled, kernels
from ctrmodels.nn.interaction import pair_inner_sum


class _Flatten(torch.autograd.Function):
    """Reads the fields once, and writes their gradient once, from flat's and the pairs' together."""

    @staticmethod
    def forward(ctx: Any, fields: Tensor, numeric: Tensor, width: int, pairs: bool,
                bf16: bool) -> tuple[Tensor, Tensor]:
        flat, pair_sum, total = compiled().flatten(fields, numeric, width, pairs, bf16)
        ctx.save_for_backward(fields, total)
        ctx.set_materialize_grads(False)
        return flat, pair_sum

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        fields, total = ctx.saved_tensors
        flat, pair_sum = gradients
        if flat is None:
            flat = fields.new_zeros(len(fields), fields[0].numel())
        if pair_sum is None:
            pair_sum = fields.new_empty(0)
        gradient = compiled().flatten_backward(flat.contiguous(), pair_sum.contiguous(), fields, total)
        return gradient, None, None, None, None


def flat_width(n_fields: int, dim: int, n_numeric: int) -> int:
    """W: a multiple of 8, so that every row begins where processors like to read; the columns added are zero."""
    return -(-(n_fields * dim + n_numeric) // 8) * 8


def flatten(fields: Tensor, numeric: Tensor, pairs: bool = False) -> tuple[Tensor, Tensor]:
    """[B, F, D] and [B, N] → [B, W]; under autocast already in its type, which halves the copying.

    Args:
        fields: embeddings.
        numeric: values that go behind them.
        pairs: also compute :func:`~ctrmodels.nn.interaction.pair_inner_sum` [B], which costs little here; else it is
            empty.
    """
    width = flat_width(fields.shape[1], fields.shape[2], numeric.shape[1])
    kind = fields.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    compiles = fields.dtype == numeric.dtype == torch.float32 and dtype in (torch.float32, torch.bfloat16)
    if compiles and kernels(fields, numeric):
        return cast(tuple[Tensor, Tensor], _Flatten.apply(
            fields.contiguous(), numeric.contiguous(), width, pairs, dtype == torch.bfloat16))
    filling = numeric.new_zeros(numeric.shape[0], width - fields.shape[1] * fields.shape[2] - numeric.shape[1])
    flat = torch.cat([part.to(dtype) for part in (fields.flatten(1), numeric, filling)], 1)
    return flat, pair_inner_sum(fields) if pairs else fields.new_empty(0)
