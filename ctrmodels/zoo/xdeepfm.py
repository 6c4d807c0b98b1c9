"""Extreme deep factorisation machine."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.cin import CIN
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class XDeepFM(CTRModel):
    """``logit = first_order + w^T CIN(e_1 .. e_F) + MLP([e_1 .. e_F; numeric])``.

    "xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems", KDD 2018, section 3.3.

    Args:
        schema: the log.
        spec: embedding allocation.
        objective: the binary objective to predict.
        hidden: widths of the MLP.
        cin: vectors per layer of the compressed interaction network.
        dropout: of the MLP.
        l2: weight of the embeddings' squared norm.
        embedding: takes the place of the spec's embedding.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 cin: Sequence[int] = (32, 32), dropout: float = 0.0, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, dropout, l2, embedding)
        self.wide, self.cin = FirstOrder(schema, 1), CIN(self.encoder.n_fields, cin)
        self.out = nn.Linear(self.cin.width, 1, bias=False)
        self.deep = MLP(self.encoder.width, hidden, dropout, width_out=1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        return (self.wide(encoded).squeeze(1) + self.out(self.cin(encoded.fields)).squeeze(1)
                + self.deep(encoded.flat).squeeze(1))

    def flops(self) -> int:
        """First order and the compressed interaction network."""
        return super().flops() + self.cin.flops(self.encoder.embedding.dim)
