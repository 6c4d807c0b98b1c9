"""An MLP on the embeddings, without any explicit interaction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class DNN(CTRModel):
    """``logit = MLP([e_1 .. e_F; numeric])``.

    The deep part of "Wide & Deep Learning for Recommender Systems", DLRS 2016, section 3.2.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 dropout: float = 0.0, l2: float = 0.0, embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, dropout, l2, embedding)
        self.deep = MLP(self.encoder.width, hidden, dropout, width_out=1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        return self.deep(encoded.flat).squeeze(1)
