"""What all plain models are: an encoder, and a logit of one binary objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec, Cost
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded, FeatureEncoder
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.nn.losses import known_cross_entropy


def without_interactions(spec: ArchSpec) -> ArchSpec:
    """``spec`` for a model whose interactions are its own."""
    return replace(spec, interactions=(), groups=(), tables={})


@dataclass(frozen=True)
class Sizes:
    """What all models are sized by; each takes what it has.

    Attributes:
        hidden: widths of the MLP.
        dropout: of the MLP and the features side by side.
        l2: weight of the embeddings' squared norm.
        gate_init: where the gates of pairs start.
    """

    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.0
    l2: float = 0.0
    gate_init: float = 0.1


class CTRModel(nn.Module, ABC):
    """Base of the plain models.

    Notation, here and in every model: B rows, F embedded fields, N numeric fields, D embedding width, W = F*D + N
    width of the features side by side.

    Args:
        schema: the log.
        spec: embedding allocation and explicit interactions.
        objective: the binary objective to predict; its positives count on all rows.
        dropout: on the features side by side.
        l2: weight of the embeddings' squared norm.
        embedding: takes the place of the spec's embedding.
        pair_sum: whether the model reads ``Encoded.pair_sum``.
        fields: whether it reads ``Encoded.fields``.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, dropout: float = 0.0, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None, pair_sum: bool = False,
                 fields: bool = True) -> None:
        super().__init__()
        self.objective, self.column = objective, schema.objective_index(objective)
        self.encoder = FeatureEncoder(schema, spec, dropout=dropout, l2=l2, embedding=embedding,
                                      pair_sum=pair_sum, fields=fields)

    @classmethod
    def sized(cls, schema: Schema, spec: ArchSpec, objective: str, sizes: Sizes,
              embedding: FieldEmbedding | None = None) -> CTRModel:
        """The model in the common sizes, with its own other settings as they are by default."""
        settings: dict[str, Any] = {"hidden": sizes.hidden, "dropout": sizes.dropout, "l2": sizes.l2,
                                    "gate_init": sizes.gate_init, "embedding": embedding}
        takes = signature(cls).parameters
        return cls(schema, spec, objective, **{k: v for k, v in settings.items() if k in takes})

    @abstractmethod
    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""

    def forward(self, batch: Batch) -> Tensor:
        """[B] logits."""
        return self.score(self.encoder(batch)).float()

    def loss(self, batch: Batch) -> Tensor:
        """Mean binary cross-entropy over the rows whose label is known, plus the embedding penalty."""
        encoded = self.encoder(batch)
        return known_cross_entropy(self.score(encoded).float(), batch.labels[:, self.column]) + encoded.penalty

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``{objective}@all`` → [B] probabilities."""
        return {f"{self.objective}@all": torch.sigmoid(self(batch))}

    def flops(self) -> int:
        """Operations per row beyond those of ``Linear`` layers and of the encoder."""
        return sum(m.flops() for m in self.modules() if isinstance(m, FirstOrder))

    def cost(self) -> Cost:
        """What the built model stores and computes."""
        stored, overhead, trained = self.encoder.stored()
        other = sum(p.numel() for p in self.parameters()) - trained
        linear = sum(2 * m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))
        return Cost(parameters_embedding=stored, parameters_other=other,
                    flops=linear + self.encoder.flops() + self.flops(),
                    bytes=4 * (stored + other) + overhead)


class GatedModel(CTRModel):
    """A model with a gate on every interaction of its spec, which a search may drive to zero."""

    @property
    @abstractmethod
    def gated(self) -> nn.Module:
        """The module whose parameter ``gates`` [M, 1] they are, in the order of the spec's interactions."""
