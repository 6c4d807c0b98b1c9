"""From a batch to what every model starts from: field embeddings, their flat form, and explicit interactions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ctrmodels import ranks
from ctrmodels.allocation import Alloc, CentralResidual, FieldDimMask, PerBucket, PerField, Uniform, ValueMask
from ctrmodels.archspec import MAIN, ArchSpec
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.dropout import Dropout
from ctrmodels.nn.embedding import (
    FieldDimMaskEmbedding,
    FieldEmbedding,
    MaskedEmbedding,
    PerBucketEmbedding,
    PerFieldEmbedding,
    UniformEmbedding,
)
from ctrmodels.nn.flat import LaidOut, appended, appended_width, flat_width, in_one_pass, lay_out, look_up_rows
from ctrmodels.nn.group import Groups
from ctrmodels.nn.interest import BY_MEAN, Attended, Interests, Steps
from ctrmodels.nn.micronet import MicroNets
from ctrmodels.nn.products import Interacting, Products
from ctrmodels.nn.residual import ResidualEmbedding
from ctrmodels.nn.rows import ByRow, Touched
from ctrmodels.nn.table import Layout, Lookup


@dataclass
class Encoded:
    """A batch after its encoder.

    Attributes:
        fields: [B, F, D] embedding of every field; it may be empty if the encoder was not asked for it.
        flat: [B, W] fields laid side by side, the numeric values, ``interests``, and what groups of fields and
            micro-networks give; what an MLP reads.
        interests: [B, D] per history that the encoder looks at from the row's own item.
        interactions: those of the spec that are no micro-networks, of every encoder: of one, unless each objective has
            its own.
        pair_sum: [B] sum of all fields' pairs; empty unless the encoder was asked for it.
        penalty: scalar, ``l2`` times the squared norm of the embeddings, per row, and what the embedding adds of its
            own; part of every loss.
        lookup: the rows of the batch in the layout of all fields.
        numeric: [B, N] numeric values.
        batch: the batch itself.
        steps: name of a sequence → [B, L, D], its single steps, which models read that do more than pool them; mask
            padded ones.
        constant: number of the first columns of ``flat`` that nobody wants a gradient of.
    """

    fields: Tensor
    flat: Tensor
    interests: tuple[Tensor, ...]
    interactions: Sequence[Interacting]
    pair_sum: Tensor
    penalty: Tensor
    lookup: Lookup
    numeric: Tensor
    batch: Batch
    steps: Callable[[str], Tensor]
    constant: int = 0

    @property
    def products(self) -> Tensor:
        """[B, M] one number per interaction, computed at every reading."""
        return torch.cat([own.values() for own in self.interactions], dim=1)


def build_embedding(schema: Schema, alloc: Alloc | None, out_dim: int) -> FieldEmbedding:
    """The embedding that ``alloc`` describes, ``out_dim`` wide where that does not say how wide.

    Raises:
        ValueError: there is none, or its mask or graph has another shape than the log's ids.
    """
    if isinstance(alloc, Uniform):
        return UniformEmbedding(schema, alloc.dim)
    if isinstance(alloc, PerField):
        return PerFieldEmbedding(schema, alloc.dims, out_dim)
    if isinstance(alloc, PerBucket):
        return PerBucketEmbedding(schema, alloc, out_dim)
    if isinstance(alloc, FieldDimMask):
        return FieldDimMaskEmbedding(schema, alloc.mask)
    if isinstance(alloc, ValueMask):
        if alloc.mask.shape[0] != schema.total_vocab:
            raise ValueError(f"a mask of {alloc.mask.shape[0]} rows for {schema.total_vocab} ids")
        return MaskedEmbedding(schema, alloc.mask, alloc.init)
    if isinstance(alloc, CentralResidual):
        return ResidualEmbedding(schema, alloc, out_dim)
    raise ValueError("the spec does not speak of the embedding")


class FeatureEncoder(nn.Module):
    """Embeddings and interactions of one ArchSpec, shared by all objectives.

    Args:
        schema: the log.
        spec: which embedding, which interactions, which groups.
        dropout: on ``flat``.
        l2: weight of ``Encoded.penalty``.
        embedding: takes the place of the spec's embedding (a search's relaxation of it).
        pair_sum: whether ``Encoded.pair_sum`` is wanted.
        attended: what ``Encoded.interests`` are of. They stand beside the histories' means, which the spec's
            interactions were searched with and go on reading.
        fields: whether ``Encoded.fields`` is wanted.

    Attributes:
        width: W.
        tables: the embeddings that only interactions and groups read, by name.
        n_products: M.
        reads_fields: whether anybody reads ``Encoded.fields`` beside interactions and groups, which may read rows.
    """

    bounds: Tensor

    def __init__(self, schema: Schema, spec: ArchSpec, dropout: float = 0.0, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None, pair_sum: bool = False,
                 attended: Attended = BY_MEAN, fields: bool = True) -> None:
        super().__init__()
        if spec.interactions is None:
            raise ValueError(f"the spec of {spec.method} does not speak of the interactions")
        self.layout = Layout(schema)
        ends = torch.tensor([0, *(f.vocab for f in schema.id_spaces)]).cumsum(0)
        self.register_buffer("bounds", ends, persistent=False)  # of the id spaces, which lie end to end
        self.embedding = embedding if embedding is not None else build_embedding(schema, spec.alloc, spec.out_dim)
        self.tables = nn.ModuleDict({name: build_embedding(schema, alloc, spec.out_dim)
                                     for name, alloc in spec.tables.items()})
        self.n_fields = self.layout.n_fields
        dims = {name: cast(FieldEmbedding, table).dim for name, table in self.tables.items()}
        dims = {MAIN: self.embedding.dim, **dims}
        self.products = Products(spec.products, self.n_fields, dims)
        self.groups = Groups(spec.groups, self.n_fields, dims)
        self.micronets = MicroNets(spec.micronets, self.n_fields, self.embedding.dim)
        self.interests = Interests(schema, self.embedding.dim, attended.histories, softmax=attended.softmax)
        self.dropout = Dropout(dropout)
        self.l2, self.pair_sum = l2, pair_sum
        self.plain_width = flat_width(self.n_fields, self.embedding.dim, len(schema.numeric_fields))
        self.width = appended_width(self.plain_width, self.interests.width + self.groups.width + self.micronets.width)
        self.n_products = len(self.products)
        self.reads_fields = bool(fields or self.micronets.width or self.interests.width)
        self.embedding.read = bool(self.reads_fields or l2 or self.n_products or self.groups.width)

    def forward(self, batch: Batch, lookup: Lookup | None = None) -> Encoded:
        """Encode B rows, whose ``lookup`` may be there already."""
        lookup = self.layout(batch) if lookup is None else lookup
        rows = self._by_row(batch, lookup)
        room = 0 if self.interests.width or self.micronets.width else self.groups.width
        laid = (look_up_rows(rows[MAIN].rows, lookup, batch.numeric, self.pair_sum, self.reads_fields, room)
                if MAIN in rows else self.embedding.laid_out(batch, lookup, batch.numeric, self.pair_sum))
        return self._encoded(batch, lookup, laid, self._tables(batch, lookup, rows), self.steps(batch), rows)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings of every field [B, F, D] by the name of their table, for :meth:`encode` to go on with."""
        lookup = self.layout(batch)
        return {MAIN: self.embedding(batch, lookup), **self._tables(batch, lookup)}

    def steps(self, batch: Batch) -> dict[str, Steps]:
        """The histories that ``Encoded.interests`` are of, by name, for :meth:`encode` to go on with."""
        return self.interests.steps(self.embedding, batch)

    def encode(self, batch: Batch, lookup: Lookup, by_name: Mapping[str, Tensor],
               steps: Mapping[str, Steps]) -> Encoded:
        """:meth:`forward` from embeddings that are there already, such as a user's who is the same in all rows.

        Args:
            batch: B rows.
            lookup: what the linear part adds up.
            by_name: of :meth:`embed`.
            steps: of :meth:`steps`.
        """
        laid = lay_out(by_name[MAIN], batch.numeric, self.pair_sum)
        return self._encoded(batch, lookup, laid, {name: by_name[name] for name in self.tables}, steps)

    def _tables(self, batch: Batch, lookup: Lookup, besides: Collection[str] = ()) -> dict[str, Tensor]:
        return {name: table(batch, lookup) for name, table in self.tables.items() if name not in besides}

    def _by_row(self, batch: Batch, lookup: Lookup) -> dict[str, ByRow]:
        """What interactions and groups read of a training batch by row, where the kernels apply and rows are not
        transformed. The network's own fields are looked up for the MLP anyway, so that to write them for interactions
        alone is quicker; laid out from rows, they have the room in which groups write."""
        names = self.groups.tables | {name for name in self.products.tables if name != MAIN}
        if self.groups.width:
            names.add(MAIN)
        one_pass = self.training and names and in_one_pass(lookup, batch.numeric) is not None
        if not one_pass or ranks.count() > 1:
            return {}
        touched, by_name = Touched(lookup.segments, self.bounds, len(lookup.index)), {MAIN: self.embedding}
        by_name |= {name: cast(FieldEmbedding, table) for name, table in self.tables.items()}
        tables = {name: e.table for name, e in by_name.items() if name in names and isinstance(e, UniformEmbedding)}
        rows = touched.of_all(list(tables.values())) if tables else []
        return {name: ByRow(x, lookup, touched) for name, x in zip(tables, rows, strict=True)}

    def _encoded(self, batch: Batch, lookup: Lookup, laid: LaidOut, tables: Mapping[str, Tensor],
                 steps: Mapping[str, Steps], rows: Mapping[str, ByRow] | None = None) -> Encoded:
        fields, flat, pair_sum, own = laid
        by_name: dict[str, Tensor | ByRow] = {MAIN: fields, **tables, **(rows or {})}
        penalty = fields.new_zeros(())
        if self.l2:
            penalty = self.l2 * torch.stack([_squares(e) for e in by_name.values()]).sum() / lookup.shape[0]
        penalty = penalty if own is None else penalty + own
        interests = self.interests(fields.unbind(1), steps) if steps else ()
        constant = 0
        if flat.shape[1] > self.plain_width:  # it has room for them
            constant = 0 if flat.requires_grad else self.plain_width
            flat = self.groups.written(flat, self.plain_width, by_name)
        else:
            flat = appended(flat, [*interests, *self.groups(by_name), *self.micronets(fields)])
        flat = self.dropout(flat)
        return Encoded(fields, flat, interests, [Interacting(self.products, by_name)], pair_sum, penalty, lookup,
                       batch.numeric, batch, partial(self.embedding.steps, batch), constant)

    def side_by_side(self, fields: Tensor, numeric: Tensor) -> Tensor:
        """[B, F, D] and [B, N] → [B, W], with dropout."""
        return self.dropout(lay_out(fields, numeric).flat)

    @property
    def embeddings(self) -> list[FieldEmbedding]:
        """The network's embedding, and those of interactions and groups."""
        return [self.embedding, *(cast(FieldEmbedding, table) for table in self.tables.values())]

    def stored(self) -> tuple[int, int, int]:
        """Of all embeddings: stored values, bytes beyond them, and trainable values."""
        return (sum(e.stored_values() for e in self.embeddings), sum(e.overhead_bytes() for e in self.embeddings),
                sum(p.numel() for e in self.embeddings for p in e.parameters()))

    def flops(self) -> int:
        """Operations per row: projections, interactions, groups, micro-networks and attention to histories."""
        return (sum(e.flops() for e in self.embeddings) + self.products.flops() + self.groups.flops()
                + self.micronets.flops() + self.interests.flops())


def _squares(embedding: Tensor | ByRow) -> Tensor:
    """Sum of the squares of all looked-up values, a scalar."""
    if isinstance(embedding, ByRow):
        # Not by a product of vectors, which autocast would round.
        return (embedding.rows.square().sum(1) * embedding.touched.counts).sum()
    return embedding.square().sum()
