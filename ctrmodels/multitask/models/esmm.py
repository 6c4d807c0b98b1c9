"""ESMM: towers on the embeddings alone, joint events trained on all rows."""

from __future__ import annotations

from torch import Tensor

from ctrmodels.multitask import chains
from ctrmodels.multitask.parts import FlatTrunk, Parts, Site


class Identity(FlatTrunk):
    """Nothing shared above the embeddings: every tower reads the features themselves (ESMM's layout)."""

    def __init__(self, width_in: int, n_objectives: int) -> None:
        super().__init__(width_in, n_objectives)

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        return [flat] * self.n_objectives


def esmm(site: Site) -> Parts:
    """Nothing shared above the embeddings; each tower starts with the bottom's layers, so that it is as deep."""
    c = site.config
    trunk = Identity(site.width, site.n_objectives)
    return Parts(trunk, chains.esmm(site.schema.objectives), (*c.bottom, *c.tower))
