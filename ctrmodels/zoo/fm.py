"""Factorisation machine."""

from __future__ import annotations

from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.nn.pair_sum import pair_inner_sum
from ctrmodels.zoo.base import CTRModel, without_interactions


class FM(CTRModel):
    """``logit = first_order + sum_{i<j} <e_i, e_j>``.

    "Factorization Machines", ICDM 2010, equation 1.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, l2=l2, embedding=embedding)
        self.wide = FirstOrder(schema, 1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        return self.wide(encoded).squeeze(1) + pair_inner_sum(encoded.fields)

    def flops(self) -> int:
        """First order and pairs."""
        return super().flops() + 4 * self.encoder.n_fields * self.encoder.embedding.dim
