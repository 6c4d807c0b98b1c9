"""One network per objective, nothing shared: the baseline of every multi-objective model."""

from __future__ import annotations

from torch import Tensor

from ctrmodels.multitask import chains
from ctrmodels.multitask.parts import FlatTrunk, Parts, Site


class Split(FlatTrunk):
    """What the objectives' own encoders laid side by side, taken apart again."""

    def __init__(self, width_in: int, n_objectives: int) -> None:
        super().__init__(width_in // n_objectives, n_objectives)

    def forward(self, flat: Tensor) -> list[Tensor]:
        """``flat`` [B, K*W] → K representations [B, W]."""
        return list(flat.split(self.width, dim=1))


def single(site: Site) -> Parts:
    """A tower on each objective's own embeddings, as deep as bottom and tower; heads trained in their own spaces.

    The networks have no parameter in common and their losses are added, so that one training trains each as it would
    be trained alone on the same batches, Adam moving every weight by that weight's gradients only. Two things of the
    loop remain common: the epoch that early stopping keeps, and the norm that ``clip_norm`` limits.
    """
    c = site.config
    trunk = Split(site.width, site.n_objectives)
    return Parts(trunk, chains.independent(site.schema.objectives), (*c.bottom, *c.tower))
