"""Attention: of fields to each other, and of a candidate to a history.

Notation: B rows, F fields, L steps, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.nn.dice import Dice
from ctrmodels.nn.towers import MLP


class FieldAttention(nn.Module):
    """One interacting layer: every field becomes a mixture of all fields, once per head, plus itself.

    ``e'_m = ReLU([sum_k a^1_mk V^1 e_k .. sum_k a^H_mk V^H e_k] + R e_m)`` with
    ``a^h_mk = softmax_k <Q^h e_m, K^h e_k>``, which is not scaled. "AutoInt: Automatic Feature Interaction Learning via
    Self-Attentive Neural Networks", CIKM 2019, section 4.4.

    Args:
        width_in: D.
        head_width: width of one head.
        heads: H.

    Attributes:
        width: of the output, H * head_width.
    """

    def __init__(self, width_in: int, head_width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, heads * head_width
        self.maps = nn.Linear(width_in, 4 * self.width, bias=False)  # Q, K, V and R in one product

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, F, width]."""
        *heads, itself = self.maps(fields).chunk(4, 2)
        query, key, value = (h.unflatten(2, (self.heads, -1)).transpose(1, 2) for h in heads)  # [B, H, F, head_width]
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return F.relu(mixed.transpose(1, 2).flatten(2) + itself)

    def flops(self, n_fields: int) -> int:
        """Operations per row beyond one use of its ``Linear`` layer."""
        again = 2 * (n_fields - 1) * self.maps.weight.numel()
        return again + 4 * n_fields * n_fields * self.width + n_fields * self.width


class InterestPooling(nn.Module):
    """Sum of a history's steps, each weighted by how much it says about the candidate.

    ``v = sum_j a(k_j, q) k_j`` for the candidate's embedding q and the steps' embeddings k_j, with an MLP
    ``a = MLP([q; k; q - k; q * k])``. "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, equation
    3; the four parts as in its published code. Without softmax the weights need not sum to 1, so that v keeps how
    strong the interest is (section 4.3).

    The MLP sees steps that are there only: padding costs nothing and is not in the statistics of :class:`Dice`.

    Args:
        dim: D.
        hidden: widths of the MLP.
        softmax: whether a row's weights are normalised.
        dice: whether the MLP has :class:`Dice` in place of ReLU.
    """

    def __init__(self, dim: int, hidden: Sequence[int], softmax: bool = False, dice: bool = False) -> None:
        super().__init__()
        self.unit = MLP(4 * dim, hidden, width_out=1, activation=Dice if dice else None)
        self.softmax, self.dim = softmax, dim

    def forward(self, candidate: Tensor, steps: Tensor, there: Tensor) -> Tensor:
        """[B, D], [B, L, D] and bool [B, L] of the steps that are there → [B, D], zero where there are none."""
        weights = self.weights(candidate, steps, there)
        return torch.bmm(weights.unsqueeze(1), steps).squeeze(1).to(steps.dtype)

    def weights(self, candidate: Tensor, steps: Tensor, there: Tensor) -> Tensor:
        """What each step counts: float32 [B, L], 0 where there is none."""
        weights = self._scores(candidate, steps, there)
        if self.softmax:
            # Not minus infinity, with which a row without any step would have no softmax.
            weights = weights.masked_fill(~there, torch.finfo(weights.dtype).min).softmax(1)
        return weights.masked_fill(~there, 0.0)

    def _scores(self, candidate: Tensor, steps: Tensor, there: Tensor) -> Tensor:
        """float32 [B, L] of the steps that are there."""
        k = steps.flatten(0, 1)
        if torch.compiler.is_exporting():  # no shape may depend on how many steps are there
            return self._score(candidate.unsqueeze(1).expand_as(steps).flatten(0, 1), k).view_as(there)
        place = there.flatten().nonzero().squeeze(1)  # [n]
        scores = self._score(candidate.index_select(0, place // steps.shape[1]), k.index_select(0, place))
        return scores.new_zeros(there.numel()).index_copy(0, place, scores).view_as(there)

    def _score(self, q: Tensor, k: Tensor) -> Tensor:
        """[n, D] twice → float32 [n]."""
        return self.unit(torch.cat([q, k, q - k, q * k], 1)).squeeze(1).float()

    def flops(self, n_steps: int) -> int:
        """Operations per row with ``n_steps`` steps, beyond one use of its ``Linear`` layers."""
        linear = sum(2 * m.weight.numel() for m in self.unit.modules() if isinstance(m, nn.Linear))
        return (n_steps - 1) * linear + 4 * n_steps * self.dim
