"""Mixtures of experts with one gate for all objectives (OMoE) or one for each (MMoE)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ctrmodels.multitask import chains
from ctrmodels.multitask.parts import FlatTrunk, Parts, Site
from ctrmodels.nn.dropout import Dropout
from ctrmodels.nn.mixing import mixture
from ctrmodels.nn.towers import computes, linear_relu


@dataclass(frozen=True)
class MixtureOptions:
    """Of a mixture.

    Attributes:
        experts: number of experts.
    """

    experts: int = 4


class MMoE(FlatTrunk):
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
        self.gate = nn.Parameter(uniform((n_objectives, experts, width_in), fan_in=width_in))

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        dtype = computes(flat) if self.experts.plain else None
        if dtype:
            mixed = mixture(flat.to(dtype), self.experts.weights[0], self.experts.biases[0], self.gate)
        else:
            mixed = torch.einsum("bke,beh->kbh", self.gates(flat), self.experts(flat))
        return list(mixed.unbind(dim=0))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The experts; every gate belongs to one objective."""
        return self.experts.parameters()

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights of the experts' last layers."""
        return [self.experts.weights[-1]]

    def gates(self, flat: Tensor) -> Tensor:
        """Mixing weights [B, K, E]."""
        return torch.einsum("bw,kew->bke", flat, self.gate).softmax(dim=-1)

    def flops(self) -> int:
        """The experts, the gates and the mixing."""
        mixing = 2 * self.n_objectives * self.experts.count * self.width
        return self.experts.flops() + 2 * self.gate.numel() + mixing


class OMoE(FlatTrunk):
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

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights of the experts' last layers."""
        return self.mixture.last_shared_layer()

    def gates(self, flat: Tensor) -> Tensor:
        """Mixing weights [B, K, E], the same for all objectives."""
        return self.mixture.gates(flat).expand(-1, self.n_objectives, -1)

    def flops(self) -> int:
        """Those of the mixture."""
        return self.mixture.flops()


class Experts(nn.Module):
    """E ReLU networks of equal shape in grouped tensors: a weight [E, in, out] and a bias [E, out] per layer.

    Every expert's weights are drawn on their own: a constant initialisation of experts and gates gives all
    experts equal gradients for ever.
    """

    def __init__(self, count: int, width_in: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.count = count
        layers = list(pairwise((width_in, *hidden)))
        self.weights = nn.ParameterList(nn.Parameter(uniform((count, a, b), fan_in=a)) for a, b in layers)
        self.biases = nn.ParameterList(nn.Parameter(uniform((count, b), fan_in=a)) for a, b in layers)
        self.dropout = Dropout(dropout)

    @property
    def plain(self) -> bool:
        """Whether every expert is a single layer, and nothing of it is dropped now."""
        return len(self.weights) == 1 and not (self.training and self.dropout.level)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, W] → [B, E, H].

        The first layers of all experts read the same input, so that together they are one wide layer.
        """
        first, bias = self.weights[0], self.biases[0]
        h = linear_relu(x, first.mT.flatten(0, 1), bias.flatten()).unflatten(1, bias.shape)
        h = self.dropout(h)
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = torch.baddbmm(bias.unsqueeze(1), h.transpose(0, 1), weight).relu().transpose(0, 1)
            h = self.dropout(h)
        return h

    def flops(self) -> int:
        """Operations per row."""
        return sum(2 * w.numel() for w in self.weights)


def mmoe(site: Site) -> Parts:
    """A gate per objective, every head trained on the rows of its own space."""
    return Parts(_mixture(site), chains.independent(site.schema.objectives), site.config.tower)


def omoe(site: Site) -> Parts:
    """One gate for all objectives: the mixture's own control."""
    c = site.config
    trunk = OMoE(site.width, site.n_objectives, site.options.experts, c.bottom, c.dropout)
    return Parts(trunk, chains.independent(site.schema.objectives), c.tower)


def mmoe_esmm(site: Site) -> Parts:
    """Experts and gates of MMoE under ESMM's chain."""
    return Parts(_mixture(site), chains.esmm(site.schema.objectives), site.config.tower)


def _mixture(site: Site) -> MMoE:
    c = site.config
    return MMoE(site.width, site.n_objectives, site.options.experts, c.bottom, c.dropout)


def uniform(shape: Sequence[int], fan_in: int) -> Tensor:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch.nn.Linear draws its weights."""
    bound = 1.0 / math.sqrt(fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)
