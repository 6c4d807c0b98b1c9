"""Logistic regression: the baseline that every other model has to beat."""

from __future__ import annotations

from torch import Tensor

from ctrmodels.archspec import ArchSpec, PerField
from ctrmodels.data.schema import Schema
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.zoo.base import CTRModel


class LR(CTRModel):
    """``logit = b + sum_f w[id_f] + sum_n v_n x_n``: a weight per id and per numeric value, no embeddings.

    "Predicting Clicks: Estimating the Click-Through Rate for New Ads", WWW 2007, section 5.

    Args:
        schema: the log.
        spec: of the log; a logistic regression takes nothing else from it.
        objective: the binary objective to predict.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str) -> None:
        spec.check(schema)
        none = PerField((0,) * len(schema.id_spaces))
        super().__init__(schema, ArchSpec.of(schema, "lr", 0, alloc=none, interactions=()), objective)
        self.wide = FirstOrder(schema, 1)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        return self.wide(encoded).squeeze(1)
