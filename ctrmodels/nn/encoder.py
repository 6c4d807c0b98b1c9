"""From a batch to what every model starts from: field embeddings, their flat form, and explicit pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec, PerField, Uniform, ValueMask
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import (
    Bags,
    FieldEmbedding,
    MaskedEmbedding,
    PerFieldEmbedding,
    UniformEmbedding,
)
from ctrmodels.nn.interaction import PairProducts


@dataclass
class Encoded:
    """A batch after its encoder.

    Attributes:
        fields: [B, F, D] embedding of every field.
        flat: [B, W] fields laid side by side and the numeric values; what an MLP reads.
        pairs: [B, M] inner products of the spec's interactions.
        penalty: scalar, ``l2`` times the squared norm of the embeddings, per row; part of every loss.
    """

    fields: Tensor
    flat: Tensor
    pairs: Tensor
    penalty: Tensor


def build_embedding(schema: Schema, spec: ArchSpec) -> FieldEmbedding:
    """The embedding that ``spec.alloc`` describes.

    Raises:
        ValueError: the spec does not speak of the embedding, or its mask has another shape than the log's ids.
    """
    if isinstance(spec.alloc, Uniform):
        return UniformEmbedding(schema, spec.alloc.dim)
    if isinstance(spec.alloc, PerField):
        return PerFieldEmbedding(schema, spec.alloc.dims, spec.out_dim)
    if isinstance(spec.alloc, ValueMask):
        if spec.alloc.mask.shape[0] != schema.total_vocab:
            raise ValueError(f"a mask of {spec.alloc.mask.shape[0]} rows for {schema.total_vocab} ids")
        return MaskedEmbedding(schema, spec.alloc.mask, spec.alloc.init)
    raise ValueError(f"the spec of {spec.method} does not speak of the embedding")


class FeatureEncoder(nn.Module):
    """Embeddings and pairs of one ArchSpec, shared by all objectives.

    Args:
        schema: the log.
        spec: which embedding, which interactions.
        dropout: on ``flat``.
        l2: weight of ``Encoded.penalty``.
        embedding: takes the place of the spec's embedding (a search's relaxation of it).

    Attributes:
        width: W.
        n_pairs: M.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, dropout: float = 0.0, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__()
        if spec.interactions is None:
            raise ValueError(f"the spec of {spec.method} does not speak of the interactions")
        self.embedding = embedding if embedding is not None else build_embedding(schema, spec)
        self.n_fields = self.embedding.bags.n_fields
        self.products = PairProducts(spec.interactions, self.n_fields)
        self.dropout = nn.Dropout(dropout)
        self.l2 = l2
        self.width = self.n_fields * spec.out_dim + len(schema.numeric_fields)
        self.n_pairs = len(spec.interactions)

    def forward(self, batch: Batch) -> Encoded:
        """Encode B rows."""
        fields = self.embedding(batch)  # [B, F, D]
        flat = self.dropout(torch.cat([fields.flatten(1), batch.numeric], 1))  # [B, F*D + N]
        pairs = self.products(fields) if self.n_pairs else fields.new_zeros(len(batch), 0)
        penalty = self.l2 * fields.square().sum() / len(batch) if self.l2 else fields.new_zeros(())
        return Encoded(fields, flat, pairs, penalty)

    def flops(self) -> int:
        """Operations per row: projections, and 2 D per pair."""
        return self.embedding.flops() + 2 * self.embedding.dim * self.n_pairs


class WideHead(nn.Module):
    """The linear part: per objective a bias, a weight per id, and a gate per normalised pair.

    ``logit_k = b_k + sum_f w_k[id_f] + sum_m alpha_km BN(pair_m)``; the pairs' batch normalisation has no
    scale and shift, so that the gate alone says how much a pair counts (AutoFIS, KDD 2020, section 3.3; momentum
    and epsilon as in its published code, since small-variance products blow up at PyTorch's defaults).
    """

    def __init__(self, schema: Schema, spec: ArchSpec, n_outputs: int, gate_init: float = 0.1) -> None:
        super().__init__()
        self.bags = Bags(schema)
        self.weights = nn.Parameter(torch.zeros(schema.total_vocab, n_outputs))
        self.bias = nn.Parameter(torch.zeros(n_outputs))
        n_pairs = len(spec.interactions or ())
        self.norm = nn.BatchNorm1d(n_pairs, affine=False, momentum=0.01, eps=1e-3) if n_pairs else None
        self.gates = nn.Parameter(torch.full((n_pairs, n_outputs), gate_init))

    def first_order(self, batch: Batch) -> Tensor:
        """[B, K]: bias and id weights."""
        return self.bias + self.bags.gather(batch, self.weights).sum(1)

    def forward(self, batch: Batch, encoded: Encoded) -> Tensor:
        """[B, K]."""
        out = self.first_order(batch)
        return out if self.norm is None else out + self.norm(encoded.pairs) @ self.gates
