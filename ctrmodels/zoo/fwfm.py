"""Factorisation machine whose pairs of fields have weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec, all_pairs
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.zoo.base import CTRModel, without_interactions


class FwFM(CTRModel):
    """``logit = first_order + sum_{i<j} r_ij <e_i, e_j>`` with a learned weight r_ij per pair of fields.

    "Field-weighted Factorization Machines for Click-Through Rate Prediction in Display Advertising", WWW 2018,
    section 4. All r_ij start at 1, as a factorisation machine.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None) -> None:
        pairs = replace(without_interactions(spec), interactions=all_pairs(schema))
        super().__init__(schema, pairs, objective, l2=l2, embedding=embedding)
        self.wide = FirstOrder(schema, 1)
        self.strength = nn.Parameter(torch.ones(self.encoder.n_products))

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        return self.wide(encoded).squeeze(1) + encoded.products @ self.strength

    def flops(self) -> int:
        """First order and weights of pairs."""
        return super().flops() + 2 * self.encoder.n_products
