"""Trunks: how much of the network the objectives share.

A trunk turns a batch's features ``flat`` [B, W] into one representation per objective, K tensors [B, H]; a
tower per objective follows. All trunks share the embeddings below them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

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


class OMoE(Trunk):
    """One-gate mixture of experts: ``f(x) = sum_e g(x)_e f_e(x)`` for all objectives alike.

    The baseline of "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018,
    equation 5: an :class:`MMoE` of one gate.

    Args:
        width_in: W.
        n_objectives: K.
        experts: E.
        hidden: layer widths of every expert.
    """

    def __init__(self, width_in: int, n_objectives: int, experts: int, hidden: Sequence[int],
                 dropout: float = 0.0) -> None:
        super().__init__(hidden[-1], n_objectives)
        self.mixture = MMoE(width_in, 1, experts, hidden, dropout)

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        return self.mixture(flat) * self.n_objectives

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Everything, the gate as well."""
        return self.mixture.parameters()

    def gates(self, flat: Tensor) -> Tensor:
        """Mixing weights [B, K, E], the same for all objectives."""
        return self.mixture.gates(flat).expand(-1, self.n_objectives, -1)

    def flops(self) -> int:
        """Those of the mixture."""
        return self.mixture.flops()


class PLE(Trunk):
    """Progressive layered extraction: experts of every objective beside shared ones, level by level.

    ``g_k(x) = w_k(x) S_k(x)`` with ``w_k = softmax(W_k x)``, where S_k are the outputs of the experts of objective k
    and of the shared ones. The experts and gates of a level read what their own branch gave in the level before; the
    shared branch mixes the experts of all branches. The last level has no shared mixture. With a single level it is the
    paper's customised gate control (CGC). "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL)
    Model for Personalized Recommendations", RecSys 2020, equations 1-7.

    Args:
        width_in: W.
        n_objectives: K.
        specific: experts of every objective, per level.
        shared: shared experts, per level.
        levels: layer widths of the experts, level by level.
    """

    def __init__(self, width_in: int, n_objectives: int, specific: int, shared: int, levels: Sequence[Sequence[int]],
                 dropout: float = 0.0) -> None:
        super().__init__(levels[-1][-1], n_objectives)
        widths = [width_in, *(hidden[-1] for hidden in levels)]
        self.levels = nn.ModuleList(
            _Level(width, n_objectives, specific, shared, hidden, dropout, mixes_shared=n < len(levels))
            for n, (width, hidden) in enumerate(zip(widths, levels, strict=False), 1))

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        return self._branches(flat, len(self.levels))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The shared experts and gates; of all levels but the last, everything."""
        for level in self.levels[:-1]:
            yield from level.parameters()
        yield from cast(_Level, self.levels[-1]).shared.parameters()

    def gates(self, flat: Tensor) -> Tensor:
        """Mixing weights of the last level, [B, K, K * specific + shared]: 0 for the other objectives' experts."""
        last = cast(_Level, self.levels[-1])
        return last.spread(last.weights(self._branches(flat, len(self.levels) - 1)))

    def flops(self) -> int:
        """Experts, gates and mixing of all levels."""
        return sum(cast(_Level, level).flops() for level in self.levels)

    def _branches(self, flat: Tensor, levels: int) -> list[Tensor]:
        states = [flat] * (self.n_objectives + 1)
        for level in self.levels[:levels]:
            states = level(states)
        return states


class _Level(nn.Module):
    """One level of :class:`PLE`: from K + 1 states, the shared one last, to as many, or to K."""

    def __init__(self, width: int, n_objectives: int, specific: int, shared: int, hidden: Sequence[int],
                 dropout: float, mixes_shared: bool) -> None:
        super().__init__()
        self.specific = nn.ModuleList(Experts(specific, width, hidden, dropout) for _ in range(n_objectives))
        self.shared = Experts(shared, width, hidden, dropout)
        seen = [specific + shared] * n_objectives + [n_objectives * specific + shared] * mixes_shared
        self.gate = nn.ParameterList(nn.Parameter(_uniform((n, width), fan_in=width)) for n in seen)
        self.width = hidden[-1]

    def weights(self, states: Sequence[Tensor]) -> list[Tensor]:
        """A distribution per gate over the experts it sees: [B, specific + shared] of an objective's."""
        return [(state @ gate.mT).softmax(-1) for state, gate in zip(states, self.gate, strict=False)]

    def spread(self, weights: Sequence[Tensor]) -> Tensor:
        """The objectives' weights over all experts: [B, K, K * specific + shared]."""
        n = cast(Experts, self.specific[0]).count
        rows = []
        for k in range(len(self.specific)):
            own, shared = weights[k][:, :n], weights[k][:, n:]
            before, behind = k * n, (len(self.specific) - 1 - k) * n
            rows.append(torch.cat([nn.functional.pad(own, (before, behind)), shared], 1))
        return torch.stack(rows, 1)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """K + 1 states [B, W] → as many [B, H], or K on the last level."""
        own = [experts(state) for experts, state in zip(self.specific, states, strict=False)]  # K × [B, m, H]
        shared = self.shared(states[-1])
        seen = [*(torch.cat([mine, shared], 1) for mine in own), torch.cat([*own, shared], 1)]
        return [torch.einsum("be,beh->bh", w, experts) for w, experts in zip(self.weights(states), seen, strict=False)]

    def flops(self) -> int:
        """Operations per row."""
        gates = sum(2 * gate.numel() + 2 * len(gate) * self.width for gate in self.gate)
        return gates + self.shared.flops() + sum(cast(Experts, experts).flops() for experts in self.specific)


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
