"""Progressive layered extraction, and customised gate control as its single level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ctrmodels.multitask import chains
from ctrmodels.multitask.models.mixtures import Experts, uniform
from ctrmodels.multitask.parts import FlatTrunk, Parts, Site


@dataclass(frozen=True)
class PLEOptions:
    """Of PLE and CGC.

    Attributes:
        experts: of every objective, per level.
        shared_experts: shared ones beside them.
        levels: width of the experts of every level; CGC's only level has the widths of the bottom.
    """

    experts: int = 2
    shared_experts: int = 2
    levels: tuple[int, ...] = (64, 64)


class PLE(FlatTrunk):
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

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights of the last layers of the last level's shared experts: no layer is the last shared one of all
        paths, but every objective reads these."""
        return [cast(_Level, self.levels[-1]).shared.weights[-1]]

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
        self.gate = nn.ParameterList(nn.Parameter(uniform((n, width), fan_in=width)) for n in seen)
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


def ple(site: Site) -> Parts:
    """Levels of experts, every head trained on the rows of its own space."""
    return _extraction(site, [(width,) for width in site.options.levels])


def cgc(site: Site) -> Parts:
    """A single level of experts as deep as the bottom."""
    return _extraction(site, [site.config.bottom])


def _extraction(site: Site, levels: Sequence[Sequence[int]]) -> Parts:
    o, c = site.options, site.config
    trunk = PLE(site.width, site.n_objectives, o.experts, o.shared_experts, levels, c.dropout)
    return Parts(trunk, chains.independent(site.schema.objectives), c.tower)
