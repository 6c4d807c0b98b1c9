"""Means of a loss over an objective's own rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ctrmodels import ranks


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` [B] over the rows of ``mask`` [B]; 0 if there are none.

    ``L_k = sum_i d_k(i) l_k(i) / sum_i d_k(i)`` (PLE, RecSys 2020, eq. 9): an objective's loss is divided by
    the number of its own rows, not by the batch size. Values outside the mask get no gradient; they must be
    finite, since a gradient of 0 times infinity is not 0. With several ranks the divisor is the mean number of
    such rows per rank, so that the mean over the ranks is that of the whole batch.
    """
    inside = torch.where(mask, values, torch.zeros_like(values))
    return inside.sum() / _rows(mask.sum().to(values.dtype))


def known_cross_entropy(logit: Tensor, label: Tensor) -> Tensor:
    """:func:`masked_mean` of the binary cross-entropy of ``logit`` [B] over the rows whose ``label`` [B] is not NaN."""
    known = torch.eq(label, label).to(logit.dtype)
    losses = F.binary_cross_entropy_with_logits(logit, torch.nan_to_num(label), known, reduction="sum")
    return losses / _rows(known.sum())


def _rows(found: Tensor) -> Tensor:
    """The divisor for ``found`` rows on this rank."""
    return ranks.mean(found.detach()).clamp(min=1.0 / ranks.count())
