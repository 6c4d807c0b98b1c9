"""Means of a loss over an objective's own rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrmodels import ranks


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` [B] over the rows of ``mask`` [B]; 0 if there are none.

    ``L_k = sum_i d_k(i) l_k(i) / sum_i d_k(i)`` (PLE, RecSys 2020, eq. 9): an objective's loss is divided by
    the number of its own rows, not by the batch size. Values outside the mask get no gradient; they must be
    finite, since a gradient of 0 times infinity is not 0. With several ranks the divisor is the mean number of
    such rows per rank, so that the mean over the ranks is that of the whole batch.
    """
    inside = torch.where(mask, values, torch.zeros_like(values))
    rows = ranks.mean(mask.sum().to(values.dtype).detach())
    return inside.sum() / rows.clamp(min=1.0 / ranks.count())
