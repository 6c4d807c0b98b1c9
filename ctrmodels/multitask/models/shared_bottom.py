"""Shared-bottom: one MLP for all objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from ctrmodels.multitask import chains
from ctrmodels.multitask.parts import FlatTrunk, Parts, Site
from ctrmodels.nn.towers import MLP


class SharedBottom(FlatTrunk):
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

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights of the bottom's last layer."""
        return [p for p in self.bottom.parameters() if p.dim() == 2][-1:]


def shared_bottom(site: Site) -> Parts:
    """A bottom for all, a tower each, every head trained on the rows of its own space."""
    c = site.config
    trunk = SharedBottom(site.width, site.n_objectives, c.bottom, c.dropout)
    return Parts(trunk, chains.independent(site.schema.objectives), c.tower)
