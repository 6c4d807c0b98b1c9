"""Self-attention over fields."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.attention import FieldAttention
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import FirstOrder
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class AutoInt(CTRModel):
    """``logit = first_order + w^T [e'_1 .. e'_F]`` with e' the embeddings after layers of self-attention.

    "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks", CIKM 2019, section 4.
    With ``hidden`` widths an MLP on the embeddings is added: the paper's AutoInt+.

    Args:
        schema: the log.
        spec: embedding allocation.
        objective: the binary objective to predict.
        hidden: widths of the MLP; none by default.
        layers: number of interacting layers.
        heads: per layer.
        head_width: of every head.
        dropout: of the MLP.
        l2: weight of the embeddings' squared norm.
        embedding: takes the place of the spec's embedding.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (),
                 layers: int = 3, heads: int = 2, head_width: int = 32, dropout: float = 0.0, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, dropout, l2, embedding)
        self.wide = FirstOrder(schema, 1)
        widths = [self.encoder.embedding.dim, *[heads * head_width] * layers]
        self.attention = nn.Sequential(*(FieldAttention(w, head_width, heads) for w in widths[:-1]))
        self.out = nn.Linear(self.encoder.n_fields * widths[-1], 1, bias=False)
        self.deep = MLP(self.encoder.width, hidden, dropout, width_out=1) if hidden else None

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        logit = self.wide(encoded).squeeze(1) + self.out(self.attention(encoded.fields).flatten(1)).squeeze(1)
        return logit if self.deep is None else logit + self.deep(encoded.flat).squeeze(1)

    def flops(self) -> int:
        """First order and attention."""
        return super().flops() + sum(m.flops(self.encoder.n_fields) for m in self.attention.modules()
                                     if isinstance(m, FieldAttention))
