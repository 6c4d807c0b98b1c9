"""Deep and cross network, second version."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.crossnet import CrossNet
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class DCNv2(CTRModel):
    """Cross layers beside an MLP: ``logit = w^T [cross(x); MLP(x)] + b`` with ``x = [e_1 .. e_F; numeric]``.

    "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems", WWW
    2021, equations 1-3, the parallel structure of figure 1 with full matrices.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 cross_layers: int = 3, dropout: float = 0.0, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, dropout, l2, embedding)
        self.cross = CrossNet(self.encoder.width, cross_layers)
        self.deep = MLP(self.encoder.width, hidden, dropout)
        self.out = nn.Linear(self.encoder.width + self.deep.width, 1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        both = torch.cat([self.cross(encoded.flat), self.deep(encoded.flat).to(encoded.flat.dtype)], 1)
        return self.out(both).squeeze(1)

    def flops(self) -> int:
        """The products of the cross layers."""
        return super().flops() + 2 * len(self.cross.layers) * self.encoder.width
