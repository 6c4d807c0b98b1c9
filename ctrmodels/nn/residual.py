"""Embeddings of items as what they share with their neighbours in a graph, plus a residual of their own."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ctrmodels.archspec import CentralResidual
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import INIT_SD, UniformEmbedding
from ctrmodels.nn.flat import LaidOut, look_up_rows
from ctrmodels.nn.rows import RowEmbedding, Touched
from ctrmodels.nn.table import Lookup, Table

FOLDED_ROWS = 1 << 16  # items that are folded at a time


class ResidualEmbedding(RowEmbedding):
    """``E = W C + R`` for the ids of one space, and an ordinary table for the others.

    An item's neighbours in the interest graph share the basis vectors C that make it up, so that items of one
    interest lie close together; its residual R starts small and is kept small by a penalty in the loss. "Res-embedding
    for Deep Learning Based Click-Through Rate Prediction Modeling", DLP-KDD 2019.

    Notation, beside that of :mod:`ctrmodels.nn.rows`: I items, K places in a list of neighbours, P items among the
    neighbours of one batch's items.

    Args:
        schema: the log.
        alloc: the graph and how it is used; its edges z_ij, an item's own among them, and their sums d_i give
            ``avg``: ``W_ij = z_ij / d_i``; ``gcn``: ``W_ij = z_ij / sqrt(d_i d_j)``; ``attention``:
            ``W_ij ~ z_ij exp(<c_i, c_j>)``, normalised over j.
        dim: D.

    Attributes:
        table: [total_vocab, D], where the items' rows are R.
        central: [I, D], C.
        neighbours: int32 [I, K], -1 = none.
        links: float32 [I, K]; W, or log z for ``attention``.

    Raises:
        ValueError: the graph is not of the log's items.
    """

    neighbours: Tensor
    links: Tensor

    def __init__(self, schema: Schema, alloc: CentralResidual, dim: int) -> None:
        super().__init__(schema, dim)
        alloc.check(schema)
        self.schema, self.fusion, self.lambda_r = schema, alloc.fusion, alloc.lambda_r
        self.space = [f.name for f in schema.id_spaces].index(alloc.item)
        self.start = schema.offsets[alloc.item]
        self.table = Table(schema.total_vocab, dim, INIT_SD)
        self.central = Table(len(alloc.neighbours), dim, INIT_SD)
        self.register_buffer("neighbours", torch.from_numpy(alloc.neighbours.astype(np.int32)), persistent=False)
        self.register_buffer("links", torch.from_numpy(_links(alloc)), persistent=False)

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        return self._rows(touched)[0]

    def laid_out(self, batch: Batch, lookup: Lookup, numeric: Tensor, pairs: bool) -> LaidOut:
        """See :class:`~ctrmodels.nn.embedding.FieldEmbedding`; its penalty counts every touched residual once."""
        rows, residuals = self._rows(self.touched(lookup))
        found = look_up_rows(rows, lookup, numeric, pairs, self.read)
        return found._replace(penalty=self.lambda_r * residuals.square().sum())

    def _rows(self, touched: Touched) -> tuple[Tensor, Tensor]:
        """[U, D] embeddings, and the residuals of the items among them."""
        rows = touched.of(self.table)
        begin, end = touched.cuts[self.space:self.space + 2].tolist()
        if begin == end:
            return rows, rows[:0]
        centres = self.centres(touched.rows[begin:end] - self.start)
        return rows + F.pad(centres, (0, 0, begin, len(rows) - end)), rows[begin:end]

    def centres(self, items: Tensor) -> Tensor:
        """[n] → [n, D], rows ``items`` of W C; the gradient of C is sparse."""
        near = self.neighbours.index_select(0, items)  # [n, K]
        links = self.links.index_select(0, items)
        there = near >= 0
        lengths = there.sum(1, dtype=torch.int32)
        begins = torch.cumsum(lengths, 0, dtype=torch.int32) - lengths
        lookup = Lookup(near[there], begins, (len(items), 1))
        basis = self.touched(lookup).of(self.central)  # [P, D]: neighbours repeat, their gradients add up here
        compact = lookup.compact
        if self.fusion == "attention":
            vectors = F.embedding(torch.zeros_like(near).masked_scatter(there, compact.index), basis)  # [n, K, D]
            # Lists begin with the item itself. Vectors are short: divided by sqrt(D), all would look alike.
            similarity = (vectors * vectors[:, :1]).sum(2)
            links = torch.softmax(similarity + links, 1)
        return cast(Tensor, _WeightedSums.apply(basis, links[there], compact))

    @torch.no_grad()
    def folded(self) -> UniformEmbedding:
        """A plain table of the same embeddings."""
        plain = UniformEmbedding(self.schema, self.dim, sd=0.0).to(self.table.weight.device)
        plain.table.weight.copy_(self.table.weight)
        for items in torch.arange(len(self.neighbours), device=self.neighbours.device).split(FOLDED_ROWS):
            plain.table.weight[self.start + items] += self.centres(items)
        return plain

    def stored_values(self) -> int:
        """Those of the plain table that serves in its place; the basis and the graph serve the training alone."""
        return self.table.weight.numel()


class _WeightedSums(torch.autograd.Function):
    """Sum of each bag's rows of a table, by weights; every row is looked up.

    The gradient uses the order of the look-ups by row, which is known, where PyTorch's own sorts them again.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, lookup: Lookup) -> Tensor:
        ctx.lookup = lookup
        ctx.save_for_backward(table, weights)
        return F.embedding_bag(lookup.index, table, lookup.begins, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        table, weights = ctx.saved_tensors
        lookup, gradient = ctx.lookup, gradients[0].contiguous()
        segments = lookup.segments
        of_table = F.embedding_bag(segments.bags, gradient, segments.begins, mode="sum",
                                   per_sample_weights=weights.index_select(0, segments.order))
        of_weights = None
        if ctx.needs_input_grad[1]:
            bags = torch.repeat_interleave(gradient, lookup.lengths, 0, output_size=len(weights))
            of_weights = (bags * table.index_select(0, lookup.index)).sum(1)
        return of_table, of_weights, None


def _links(alloc: CentralResidual) -> np.ndarray:
    """float32 [I, K], see :class:`ResidualEmbedding`."""
    weights = alloc.weights.astype(np.float64)
    if alloc.fusion == "attention":
        with np.errstate(divide="ignore"):
            return np.log(weights).astype(np.float32)
    sums = weights.sum(1)
    other = sums[:, None] if alloc.fusion == "avg" else np.sqrt(sums[:, None] * sums[alloc.neighbours])
    return (weights / other).astype(np.float32)
