"""Trunks: how much of the network the objectives share.

A trunk turns a batch's features ``flat`` [B, W] into one representation per objective, K tensors [B, H]; a
tower per objective follows. All trunks share the embeddings below them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ctrmodels.nn.dropout import Dropout
from ctrmodels.nn.towers import MLP


class Trunk(nn.Module, ABC):
    """Base of all trunks.

    Attributes:
        width: H, width of every representation.
        n_objectives: K.
    """

    def __init__(self, width: int, n_objectives: int) -> None:
        super().__init__()
        self.width, self.n_objectives = width, n_objectives

    @abstractmethod
    def forward(self, flat: Tensor) -> list[Tensor]:
        """``flat`` [B, W] → K representations [B, H], in the order of the objectives."""

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the losses of several objectives reach; what gradient balancing looks at."""
        return iter(())

    def gates(self, flat: Tensor) -> Tensor | None:
        """Mixing weights [B, K, E] of a gated trunk, summing to 1 over the E experts; ``None`` for others."""
        return None

    def flops(self) -> int:
        """Operations per row beyond those of its ``Linear`` layers."""
        return 0


class Identity(Trunk):
    """Nothing shared above the embeddings: every tower reads the features themselves (ESMM's layout)."""

    def __init__(self, width_in: int, n_objectives: int) -> None:
        super().__init__(width_in, n_objectives)

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        return [flat] * self.n_objectives


class SharedBottom(Trunk):
    """One MLP for all objectives: ``y_k = h_k(f(x))`` (eq. 1 of MMoE, KDD 2018)."""

    def __init__(self, width_in: int, n_objectives: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__(hidden[-1], n_objectives)
        self.bottom = MLP(width_in, hidden, dropout)

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        return [self.bottom(flat)] * self.n_objectives

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The bottom."""
        return self.bottom.parameters()


class MMoE(Trunk):
    """Multi-gate mixture of experts (KDD 2018).

    ``f_k(x) = sum_e g_k(x)_e f_e(x)`` with ``g_k(x) = softmax(W_k x)`` (eqs. 6-8): E experts shared by all
    objectives, one linear softmax gate on the input per objective.

    Args:
        width_in: W.
        n_objectives: K.
        experts: E.
        hidden: layer widths of every expert.
    """

    def __init__(self, width_in: int, n_objectives: int, experts: int, hidden: Sequence[int],
                 dropout: float = 0.0) -> None:
        super().__init__(hidden[-1], n_objectives)
        self.experts = Experts(experts, width_in, hidden, dropout)
        self.gate = nn.Parameter(_uniform((n_objectives, experts, width_in), fan_in=width_in))

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        mixed = torch.einsum("bke,beh->bkh", self.gates(flat), self.experts(flat))
        return list(mixed.unbind(dim=1))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The experts; every gate belongs to one objective."""
        return self.experts.parameters()

    def gates(self, flat: Tensor) -> Tensor:
        """Mixing weights [B, K, E]."""
        return torch.einsum("bw,kew->bke", flat, self.gate).softmax(dim=-1)

    def flops(self) -> int:
        """The experts, the gates and the mixing."""
        mixing = 2 * self.n_objectives * self.experts.count * self.width
        return self.experts.flops() + 2 * self.gate.numel() + mixing


class Experts(nn.Module):
    """E ReLU networks of equal shape in grouped tensors: a weight [E, in, out] and a bias [E, out] per layer.

    Every expert's weights are drawn on their own: a constant initialisation of experts and gates gives all
    experts equal gradients for ever.
    """

    def __init__(self, count: int, width_in: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.count = count
        layers = list(pairwise((width_in, *hidden)))
        self.weights = nn.ParameterList(nn.Parameter(_uniform((count, a, b), fan_in=a)) for a, b in layers)
        self.biases = nn.ParameterList(nn.Parameter(_uniform((count, b), fan_in=a)) for a, b in layers)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, W] → [B, E, H]."""
        h = torch.einsum("bw,ewh->beh", x, self.weights[0]) + self.biases[0]
        h = self.dropout(h.relu())
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = self.dropout((torch.einsum("beh,ehg->beg", h, weight) + bias).relu())
        return h

    def flops(self) -> int:
        """Operations per row."""
        return sum(2 * w.numel() for w in self.weights)


def _uniform(shape: Sequence[int], fan_in: int) -> Tensor:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch.nn.Linear draws its weights."""
    bound = 1.0 / math.sqrt(fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)
