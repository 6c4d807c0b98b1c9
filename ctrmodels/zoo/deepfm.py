"""DeepFM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class DeepFM(CTRModel):
    """A factorisation machine and an MLP on the same embeddings.

    ``logit = first_order + sum_{i<j} <e_i, e_j> + MLP([e_1 .. e_F; numeric])``

    "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017, equations 1-4.

    Example::

        model = DeepFM(schema, ArchSpec.dense(schema, dim=16), objective="click", hidden=(400, 400, 400))
        model.predict(batch)["click@all"]  # [B] probabilities
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 dropout: float = 0.0, l2: float = 0.0, embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, dropout, l2, embedding, pair_sum=True,
                         fields=False)
        self.wide = FirstOrder(schema, 1)
        self.deep = MLP(self.encoder.width, hidden, dropout, width_out=1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        return self.wide(encoded).squeeze(1) + encoded.pair_sum + self.deep(encoded.flat).squeeze(1)

    def flops(self) -> int:
        """First order and pairs."""
        return super().flops() + 4 * self.encoder.n_fields * self.encoder.embedding.dim
