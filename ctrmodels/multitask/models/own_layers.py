"""Layers of every objective's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from ctrmodels.multitask.parts import FlatTrunk, Trunk
from ctrmodels.nn.towers import MLP


class OwnLayers(FlatTrunk):
    """An MLP for every objective on what a trunk below gives it, for a transfer between towers rather than below them.

    Args:
        below: a trunk.
        hidden: layer widths of every MLP; none = the trunk as it is.
    """

    def __init__(self, below: Trunk, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__(hidden[-1] if hidden else below.width, below.n_objectives)
        self.below = below
        self.layers = nn.ModuleList(MLP(below.width, hidden, dropout) for _ in range(below.n_objectives))

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        return [layers(h) for layers, h in zip(self.layers, self.below(flat), strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the trunk below."""
        return self.below.shared_parameters()

    def gates(self, flat: Tensor) -> Tensor | None:
        """Those of the trunk below."""
        return self.below.gates(flat)

    def flops(self) -> int:
        """Those of the trunk below, beyond its ``Linear`` layers."""
        return self.below.flops()
