"""Product-based neural network with inner products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec, all_pairs
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class IPNN(CTRModel):
    """An MLP that also sees every inner product: ``logit = MLP([e_1 .. e_F; numeric; <e_1, e_2> .. <e_{F-1}, e_F>])``.

    "Product-based Neural Networks for User Response Prediction", ICDM 2016, section III-B, with the
    products of distinct fields and a full matrix of weights on them.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 dropout: float = 0.0, l2: float = 0.0, embedding: FieldEmbedding | None = None) -> None:
        pairs = replace(without_interactions(spec), interactions=all_pairs(schema))
        super().__init__(schema, pairs, objective, dropout, l2, embedding)
        self.deep = MLP(self.encoder.width + self.encoder.n_products, hidden, dropout, width_out=1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        return self.deep(torch.cat([encoded.flat, encoded.products.to(encoded.flat.dtype)], 1)).squeeze(1)
