"""DeepFM with chosen interactions: the host of the searches and their control."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.archspec import ArchSpec, Cost
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import FeatureEncoder, WideHead
from ctrmodels.nn.losses import masked_mean
from ctrmodels.nn.towers import MLP


class DeepFM(nn.Module):
    """First-order weights, gated pairs and an MLP over shared embeddings, for one binary objective.

    ``logit = b + sum_f w[id_f] + sum_m alpha_m BN(<e_i, e_j>_m) + MLP([e_1 .. e_F; numeric])``

    "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017, equations 1-4, with
    the pairs of an ArchSpec normalised and gated as in AutoFIS (KDD 2020, equation 4). With no ``hidden``
    widths it is a factorisation machine.

    Shapes: B rows, F fields, D width, M pairs.

    Example::

        spec = ArchSpec.dense(schema, dim=16)
        model = DeepFM(schema, spec, objective="click", hidden=(64, 32))
        model.predict(batch)["click@all"]  # [B] probabilities

    Args:
        schema: the log.
        spec: embedding allocation and interactions.
        objective: the binary objective to predict; its positives count on all rows.
        hidden: widths of the MLP.
        dropout: of the MLP.
        l2: weight of the embeddings' squared norm.
        gate_init: where the pairs' gates start.
        embedding: takes the place of the spec's embedding.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 dropout: float = 0.0, l2: float = 0.0, gate_init: float = 0.1,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__()
        self.objective, self.column = objective, schema.objective_index(objective)
        self.encoder = FeatureEncoder(schema, spec, dropout=dropout, l2=l2, embedding=embedding)
        self.wide = WideHead(schema, spec, 1, gate_init=gate_init)
        self.deep = MLP(self.encoder.width, hidden, dropout, width_out=1) if hidden else None

    def logit(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B] logits and the scalar embedding penalty."""
        encoded = self.encoder(batch)
        logit = self.wide(encoded).squeeze(1)  # [B]
        if self.deep is not None:
            logit = logit + self.deep(encoded.flat).squeeze(1)
        return logit.float(), encoded.penalty

    def loss(self, batch: Batch) -> Tensor:
        """Mean binary cross-entropy over the rows whose label is known, plus the embedding penalty."""
        logit, penalty = self.logit(batch)
        label = batch.labels[:, self.column]
        known = ~torch.isnan(label)
        losses = F.binary_cross_entropy_with_logits(logit, torch.nan_to_num(label), reduction="none")
        return masked_mean(losses, known) + penalty

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``{objective}@all`` → [B] probabilities."""
        return {f"{self.objective}@all": torch.sigmoid(self.logit(batch)[0])}

    def cost(self) -> Cost:
        """What the built model stores and computes."""
        embedding = self.encoder.embedding
        total = sum(p.numel() for p in self.parameters())
        other = total - sum(p.numel() for p in embedding.parameters())
        stored = embedding.stored_values()
        linear = sum(2 * m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))
        return Cost(parameters_embedding=stored, parameters_other=other,
                    flops=linear + self.encoder.flops() + 2 * self.encoder.n_pairs + self.encoder.n_fields,
                    bytes=4 * (stored + other) + embedding.overhead_bytes())
