"""Dropout whose random bits cost little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Sets values to zero with probability ``p`` and scales the others by ``1 / (1 - p)`` while training.

    ``torch.nn.Dropout`` draws one number per value, which on a CPU costs more than the layer that follows. Four
    values share the 64 bits of one draw here, so that ``p`` counts in steps of 1/65536, and the scale with it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout of {p} is not in [0, 1)")
        self.level = round(p * _LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        if not self.training or not self.level:
            return x
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
        kept = draws.view(torch.int16)[:x.numel()] >= self.level - _LEVELS // 2
        return x * kept.view(x.shape).to(x.dtype).mul_(_LEVELS / (_LEVELS - self.level))
