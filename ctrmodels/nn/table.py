"""Tables of embedding rows: looked up by the batch, with gradients for the touched rows only.

Notation: B rows, F fields, n look-ups, U distinct rows among them, V rows of the table, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema


@dataclass(frozen=True)
class Segments:
    """The look-ups of a batch grouped by row.

    Attributes:
        rows: int64 [U], distinct row numbers, rising.
        bags: int32 [n], the bag of every look-up, look-ups of the same row side by side.
        begins: int32 [U], where each row's look-ups start in ``bags``.
    """

    rows: Tensor
    bags: Tensor
    begins: Tensor


class Lookup:
    """Bags of row numbers: what one batch looks up in every table of one layout.

    Sorting the look-ups by row is the costly part of a gradient by rows; it is done once, on first use, for all
    tables that share the layout.

    Attributes:
        index: int32 [n] row numbers, bag after bag.
        begins: int32 [B * F], where each bag begins; ``None`` if every bag holds exactly one row.
        shape: (B, F).
    """

    def __init__(self, index: Tensor, begins: Tensor | None, shape: tuple[int, int]) -> None:
        self.index, self.begins, self.shape = index, begins, shape

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [B * F]: rows per bag."""
        assert self.begins is not None
        ends = torch.cat([self.begins[1:], self.begins.new_tensor([len(self.index)])])
        return (ends - self.begins).long()

    @cached_property
    def segments(self) -> Segments:
        """The look-ups grouped by row."""
        ordered, place = torch.sort(self.index, stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        begins = first.nonzero().squeeze(1)
        bags = place if self.begins is None else torch.repeat_interleave(self.lengths)[place]
        return Segments(ordered.index_select(0, begins).long(), bags.int(), begins.int())

    def distinct(self) -> tuple[Tensor, Tensor]:
        """int64 [U] distinct rows, and int32 [n]: where among them each look-up finds its row."""
        rows, place = torch.unique(self.index, return_inverse=True)
        return rows.long(), place.int()


class Layout(nn.Module):
    """Turns a batch into the :class:`Lookup` of some of its fields.

    An id field's bag holds its id, a sequence's bag the steps that are there. With all fields in one layout a
    batch costs one look-up, whatever its fields.

    Args:
        schema: the log.
        fields: positions of the fields to look up, among id fields and then sequences; all by default.
        starts: where each field's ids begin in the table; by default all id spaces lie end to end.
    """

    starts: Tensor
    columns: Tensor

    def __init__(self, schema: Schema, fields: Sequence[int] | None = None,
                 starts: Mapping[str, int] | None = None) -> None:
        super().__init__()
        starts = schema.offsets if starts is None else starts
        n_ids = len(schema.id_fields)
        chosen = range(n_ids + len(schema.sequence_fields)) if fields is None else sorted(fields)
        columns = [i for i in chosen if i < n_ids]
        self.sequences = [(f.name, starts[f.name]) for i, f in enumerate(schema.sequence_fields, n_ids)
                          if i in chosen]
        self.n_fields = len(chosen)
        self.all_ids = columns == list(range(n_ids))
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.register_buffer("starts", torch.tensor([starts[schema.id_fields[i].name] for i in columns],
                                                    dtype=torch.int32), persistent=False)

    def forward(self, batch: Batch) -> Lookup:
        """The look-ups, field after field within a row."""
        ids = batch.ids if self.all_ids else batch.ids.index_select(1, self.columns)
        ids = ids + self.starts
        shape = (len(batch), self.n_fields)
        if not self.sequences:
            return Lookup(ids.flatten(), None, shape)
        parts, lengths = [ids], [torch.ones_like(ids)]
        for name, start in self.sequences:
            steps = batch.sequences[name]
            there = steps >= 0
            parts.append(torch.where(there, steps + start, steps))
            lengths.append(there.sum(1, keepdim=True, dtype=torch.int32))
        rows, length = torch.cat(parts, 1), torch.cat(lengths, 1).flatten()
        return Lookup(rows[rows >= 0], torch.cumsum(length, 0, dtype=torch.int32) - length, shape)


class _BagMeans(torch.autograd.Function):
    """Mean of each bag's rows; the gradient is a coalesced sparse tensor of the touched rows."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, lookup: Lookup, mask: Tensor | None) -> Tensor:
        ctx.lookup, ctx.mask, ctx.size = lookup, mask, table.shape
        if lookup.begins is None:
            return table.index_select(0, lookup.index)
        return F.embedding_bag(lookup.index, table, lookup.begins, mode="mean")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        lookup: Lookup = ctx.lookup
        if lookup.begins is not None:
            gradient = gradient / lookup.lengths.clamp(min=1).unsqueeze(1)
        segments = lookup.segments
        values = F.embedding_bag(segments.bags, gradient, segments.begins, mode="sum")  # [U, D]
        if ctx.mask is not None:
            values = values * ctx.mask.index_select(0, segments.rows)
        return torch.sparse_coo_tensor(segments.rows.unsqueeze(0), values, ctx.size, is_coalesced=True,
                                       check_invariants=False), None, None


class Table(nn.Module):
    """V rows of width D.

    Its gradient is sparse, holding the rows that the batch touched, so that no step costs as much as the
    table is large; a row-wise optimiser (:mod:`ctrmodels.training.optimisers`) updates those rows.

    Args:
        rows: V.
        width: D.
        sd: standard deviation of the initial values; 0 starts at zero.

    Attributes:
        mask: bool [V, D] of the values that live, or ``None``: the others start at zero and never move.
    """

    mask: Tensor | None

    def __init__(self, rows: int, width: int, sd: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width).normal_(std=sd) if sd else torch.zeros(rows, width))
        self.register_buffer("mask", None)

    def prune(self, mask: Tensor) -> None:
        """Keep only the values in ``mask`` [V, D]."""
        self.mask = mask
        with torch.no_grad():
            self.weight.mul_(mask)

    def forward(self, lookup: Lookup) -> Tensor:
        """Mean of each bag's rows, zero for an empty bag: [B, F, D]."""
        return _BagMeans.apply(self.weight, lookup, self.mask).view(*lookup.shape, -1)


def tables(module: nn.Module) -> Iterator[Table]:
    """Every table inside ``module``."""
    return (m for m in module.modules() if isinstance(m, Table))
