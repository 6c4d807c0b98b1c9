"""IPNN with chosen interactions: a host of searches whose MLP reads what they choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import ProductNorm
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import GatedModel


class AutoIPNN(GatedModel):
    """An MLP that also sees gated interactions: ``logit = MLP([e_1 .. e_F; numeric; alpha_m BN(product_m) ..])``.

    "AutoFIS: Automatic Feature Interaction Selection in Factorization Models for Click-Through Rate Prediction", KDD
    2020, section 3.2, on :class:`~ctrmodels.zoo.IPNN`: the interactions are those of an ArchSpec, normalised and gated.

    Shapes: B rows, M interactions, W width of the features side by side.

    Args:
        schema: the log.
        spec: embedding allocation and interactions.
        objective: the binary objective to predict; its positives count on all rows.
        hidden: widths of the MLP.
        dropout: of the MLP.
        l2: weight of the embeddings' squared norm.
        gate_init: where the interactions' gates start.
        embedding: takes the place of the spec's embedding.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 dropout: float = 0.0, l2: float = 0.0, gate_init: float = 0.1,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, spec, objective, dropout, l2, embedding, fields=False)
        n = self.encoder.n_products
        self.norm = ProductNorm(spec.products) if n else None
        self.gates = nn.Parameter(torch.full((n, 1), gate_init))
        self.deep = MLP(self.encoder.width + n, hidden, dropout, width_out=1)

    @property
    def gated(self) -> nn.Module:
        """The model itself has them."""
        return self

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        flat = encoded.flat  # [B, W]
        if self.norm is not None:
            gated = self.norm(encoded.products) * self.gates.squeeze(1)  # [B, M]
            flat = torch.cat([flat, gated.to(flat.dtype)], 1)
        return self.deep(flat, encoded.constant).squeeze(1)

    def flops(self) -> int:
        """A multiplication per gate."""
        return super().flops() + self.gates.numel()
