"""Feature importance and bilinear interactions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.bilinear import BilinearProducts, BilinearType, Senet
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.flat import flat_width
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class FiBiNET(CTRModel):
    """``logit = first_order + MLP([p; q; numeric])``, p and q with a vector ``(e_i W) * e_j`` per pair of fields.

    p is of the embeddings, q of the embeddings that SENET has weighted. "FiBiNET: Combining Feature Importance
    and Bilinear Feature Interaction for Click-Through Rate Prediction", RecSys 2019, section 3.

    Args:
        schema: the log.
        spec: embedding allocation.
        objective: the binary objective to predict.
        hidden: widths of the MLP.
        reduction: how much narrower than the fields SENET's inner layer is.
        bilinear: what shares a matrix: ``field_all``, ``field_each`` or ``field_interaction``.
        dropout: of the MLP and its input.
        l2: weight of the embeddings' squared norm.
        embedding: takes the place of the spec's embedding.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 reduction: int = 3, bilinear: BilinearType = "field_interaction", dropout: float = 0.0,
                 l2: float = 0.0, embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, dropout, l2, embedding)
        n_fields, dim = self.encoder.n_fields, self.encoder.embedding.dim
        self.wide, self.senet = FirstOrder(schema, 1), Senet(n_fields, reduction)
        self.plain, self.weighted = (BilinearProducts(n_fields, dim, bilinear) for _ in range(2))
        width = flat_width(2 * self.plain.n_pairs, dim, len(schema.numeric_fields))
        self.deep = MLP(width, hidden, dropout, width_out=1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        products = torch.cat([self.plain(encoded.fields), self.weighted(self.senet(encoded.fields))], 1)
        features = self.encoder.side_by_side(products, encoded.numeric)
        return self.wide(encoded).squeeze(1) + self.deep(features).squeeze(1)

    def flops(self) -> int:
        """First order, SENET's means and weights, bilinear interactions."""
        n_fields = self.encoder.n_fields
        return (super().flops() + 2 * n_fields * self.encoder.embedding.dim
                + self.plain.flops(n_fields) + self.weighted.flops(n_fields))
