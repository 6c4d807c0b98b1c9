"""Tables of embedding rows: looked up by the batch, with gradients for the touched rows only.

Notation: B rows, F fields, n look-ups, U distinct rows among them, V rows of the table, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.native import kernels
from ctrmodels.native.memory import keep_freed_pages


@dataclass(frozen=True)
class Segments:
    """The look-ups of a batch grouped by row.

    Attributes:
        rows: int64 [U], distinct row numbers, rising.
        order: int32 [n], the look-ups with those of the same row side by side.
        bags: int32 [n], the bag of each of them.
        begins: int32 [U], where each row's look-ups start in ``order`` and ``bags``.
    """

    rows: Tensor
    order: Tensor
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
    def shares(self) -> Tensor | None:
        """float32 [n]: what each look-up counts in the mean of its bag; ``None`` if always 1."""
        if self.begins is None:
            return None
        return torch.repeat_interleave(1 / self.lengths.clamp(min=1).float(), self.lengths)

    @cached_property
    def segments(self) -> Segments:
        """The look-ups grouped by row."""
        compiled = kernels(self.index)
        if compiled:
            rows, order, begins = compiled.group(self.index, self.shape[1] if self.begins is None else 1)
        else:
            rows, order, begins = _grouped(self.index)
        bags = order if self.begins is None else torch.repeat_interleave(self.lengths).int().index_select(0, order)
        return Segments(rows, order, bags, begins)

    def renumbered(self, rows: Callable[[Tensor], Tensor]) -> Lookup:
        """The same bags of other rows: ``rows`` maps row numbers, elementwise."""
        return Lookup(rows(self.index), self.begins, self.shape)

    @cached_property
    def places(self) -> Tensor:
        """int32 [n]: where each look-up finds its row among ``segments.rows``."""
        order, begins = self.segments.order, self.segments.begins
        compiled = kernels(order)
        if compiled:
            return compiled.places(order, begins)
        counts = torch.cat([begins, begins.new_tensor([len(order)])]).diff()
        place = torch.empty_like(order)
        place[order.long()] = torch.repeat_interleave(counts, output_size=len(order)).int()
        return place

    @cached_property
    def compact(self) -> Lookup:
        """The same look-ups in a table of this batch's distinct rows alone, as ``segments.rows`` lists them."""
        rows = torch.arange(len(self.segments.rows), device=self.index.device)
        found = Lookup(self.places, self.begins, self.shape)
        found.segments = replace(self.segments, rows=rows)
        return found

    def means_of(self, rows: Tensor) -> Tensor:
        """Mean of each bag's ``rows`` [U, D], which are those of ``segments.rows``: [B, F, D]."""
        if self.begins is None:
            return F.embedding(self.places, rows).view(*self.shape, -1)
        return F.embedding_bag(self.places, rows, self.begins, mode="mean").view(*self.shape, -1)


def _grouped(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as ``kernels.cpp``'s ``group``, on any device."""
    ordered, order = torch.sort(index, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    begins = first.nonzero().squeeze(1)
    return ordered.index_select(0, begins).long(), order.int(), begins.int()


class PaddedLookup(Lookup):
    """Look-ups in static shapes, which is what an exported graph can compute; it has no gradient by rows.

    Attributes:
        index: int32 [B, T] row numbers: F_id id fields, then the steps of every sequence, -1 where there is none.
        widths: F_id, then each sequence's number of steps; their sum is T.
        shape: (B, F).
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        ids, *sequences = rows
        super().__init__(torch.cat([ids, *sequences], 1), None, (ids.shape[0], ids.shape[1] + len(sequences)))
        self.widths = [part.shape[1] for part in rows]

    def renumbered(self, rows: Callable[[Tensor], Tensor]) -> PaddedLookup:
        """See :class:`Lookup`; absent steps stay absent."""
        index = torch.where(self.index >= 0, rows(self.index.clamp(min=0)), self.index)
        return PaddedLookup(index.split(self.widths, 1))

    def means(self, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean of each bag's rows, zero for an empty bag: [B, F, D].

        Args:
            read: row numbers [B, T] → rows [B, T, D].
        """
        if len(self.widths) == 1:
            return read(self.index)
        ids, *sequences = read(self.index.clamp(min=0)).split(self.widths, 1)
        parts = [ids]
        for rows, index in zip(sequences, self.index.split(self.widths, 1)[1:], strict=True):
            there = (index >= 0).to(rows.dtype).unsqueeze(2)  # [B, L, 1]
            parts.append((rows * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1))
        return torch.cat(parts, 1)


class Layout(nn.Module):
    """Turns a batch into the :class:`Lookup` of some of its fields.

    An id field's bag holds its id, a sequence's bag the steps that are there. With all fields in one layout a
    batch costs one look-up, whatever its fields.

    Args:
        schema: the log.
        fields: positions of the fields to look up, among id fields and then sequences; all by default.
        starts: where each field's ids begin in the table; by default all id spaces lie end to end.

    Attributes:
        keeps: whether a batch that comes twice in turn is looked up once, whose ids are then kept until the next one.
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
        self.keeps = False
        self._last: tuple[Tensor, Lookup] | None = None
        self.all_ids = columns == list(range(n_ids))
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.register_buffer("starts", torch.tensor([starts[schema.id_fields[i].name] for i in columns],
                                                    dtype=torch.int32), persistent=False)

    def forward(self, batch: Batch) -> Lookup:
        """The look-ups, field after field within a row; padded where a model is exported."""
        if torch.compiler.is_exporting():
            return self.padded(batch)
        if self._last is not None and self._last[0] is batch.ids:
            return self._last[1]
        found = self._lookup(batch)
        self._last = (batch.ids, found) if self.keeps else None
        return found

    def _lookup(self, batch: Batch) -> Lookup:
        rows, shape = self._rows(batch), (len(batch), self.n_fields)
        if not self.sequences:
            return Lookup(rows[0].flatten(), None, shape)
        index = torch.cat(rows, 1)
        there = index >= 0
        steps = there.split([part.shape[1] for part in rows], 1)[1:]
        lengths = [torch.ones_like(rows[0]), *(s.sum(1, keepdim=True, dtype=torch.int32) for s in steps)]
        length = torch.cat(lengths, 1).flatten()
        return Lookup(index[there], torch.cumsum(length, 0, dtype=torch.int32) - length, shape)

    def padded(self, batch: Batch) -> PaddedLookup:
        """The same look-ups in shapes that no value decides."""
        return PaddedLookup(self._rows(batch))

    def _rows(self, batch: Batch) -> list[Tensor]:
        """int32 [B, F_id] rows of the id fields, then [B, L] of every sequence, -1 where it has no step."""
        ids = batch.ids if self.all_ids else batch.ids.index_select(1, self.columns)
        columns = [batch.sequences[name] for name, _ in self.sequences]
        return [ids + self.starts, *(torch.where(steps >= 0, steps + start, steps)
                                     for steps, (_, start) in zip(columns, self.sequences, strict=True))]


def steps_lookup(steps: Tensor, start: int) -> Lookup:
    """Every step of a sequence as a bag of its own, which gives [B, L, D].

    Where the sequence is padded the bag is empty, or, where a model is exported, has some row: mask these steps.

    Args:
        steps: int32 [B, L], padded with -1.
        start: where the sequence's ids begin in the table.
    """
    if torch.compiler.is_exporting():
        return PaddedLookup([steps.clamp(min=0) + start])
    there = steps >= 0
    length = there.flatten().int()
    return Lookup(steps[there] + start, torch.cumsum(length, 0, dtype=torch.int32) - length,
                  (steps.shape[0], steps.shape[1]))


def by_rows(segments: Segments, values: Tensor, size: torch.Size, mask: Tensor | None = None) -> Tensor:
    """The gradient of a table of ``size``: ``values`` [U, D] at its rows, where ``mask`` [V, D] lets them live."""
    if mask is not None:
        values = values * mask.index_select(0, segments.rows)
    return torch.sparse_coo_tensor(segments.rows.unsqueeze(0), values, size, is_coalesced=True, check_invariants=False)


class _BagMeans(torch.autograd.Function):
    """Mean of each bag's rows; the gradient is a coalesced sparse tensor of the touched rows."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, lookup: Lookup, mask: Tensor | None, void: bool) -> Tensor:
        ctx.lookup, ctx.mask, ctx.void, ctx.size = lookup, mask, void, table.shape
        if lookup.begins is None:
            compiled = kernels(table)
            return compiled.gather(table, lookup.index) if compiled else table.index_select(0, lookup.index)
        return F.embedding_bag(lookup.index, table, lookup.begins, mode="mean")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous()
        lookup: Lookup = ctx.lookup
        if lookup.begins is not None:
            gradient = gradient / lookup.lengths.clamp(min=1).unsqueeze(1)
        segments = lookup.segments
        values = F.embedding_bag(segments.bags, gradient, segments.begins, mode="sum")  # [U, D]
        if ctx.void:
            values = values * (segments.rows != 0).unsqueeze(1)
        return by_rows(segments, values, ctx.size, ctx.mask), None, None, None


class _FieldSums(torch.autograd.Function):
    """Sum over a row's fields of its bags' means, without the means themselves; the gradient is sparse as well."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, lookup: Lookup) -> Tensor:
        ctx.lookup, ctx.size = lookup, table.shape
        compiled = kernels(table)
        if compiled and lookup.begins is None:
            return compiled.field_sums(table, lookup.index, lookup.shape[1])
        if lookup.begins is None:
            return F.embedding_bag(lookup.index.view(lookup.shape), table, mode="sum")
        rows = lookup.begins[::lookup.shape[1]].contiguous()
        return F.embedding_bag(lookup.index, table, rows, mode="sum", per_sample_weights=lookup.shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        lookup: Lookup = ctx.lookup
        gradient, fields = gradients[0].contiguous(), lookup.shape[1]
        segments, shares, compiled = lookup.segments, lookup.shares, kernels(gradient)
        if compiled and lookup.begins is None:
            values = compiled.field_sums_backward(gradient, segments.bags, segments.begins, fields)
        else:
            values = F.embedding_bag(
                segments.bags // fields, gradient, segments.begins, mode="sum",
                per_sample_weights=None if shares is None else shares.index_select(0, segments.order))  # [U, D]
        return by_rows(segments, values, ctx.size), None


class Table(nn.Module):
    """V rows of width D.

    Its gradient is sparse, holding the rows that the batch touched, so that no step costs as much as the
    table is large; a row-wise optimiser (:mod:`ctrmodels.training.optimisers`) updates those rows.

    Args:
        rows: V.
        width: D.
        sd: standard deviation of the initial values; 0 starts at zero.
        void: row 0 stands for nothing: it is zero and never moves.

    Attributes:
        mask: bool [V, D] of the values that live, or ``None``: the others start at zero and never move.
    """

    mask: Tensor | None

    def __init__(self, rows: int, width: int, sd: float = 0.0, void: bool = False) -> None:
        super().__init__()
        keep_freed_pages()  # before the first large tensor, so that the table itself lies in large pages
        self.weight = nn.Parameter(torch.empty(rows, width).normal_(std=sd) if sd else torch.zeros(rows, width))
        self.register_buffer("mask", None)
        self.void = void
        if void:
            self.weight.data[0] = 0

    def prune(self, mask: Tensor) -> None:
        """Keep only the values in ``mask`` [V, D]."""
        self.mask = mask
        with torch.no_grad():
            self.weight.mul_(mask)

    def forward(self, lookup: Lookup) -> Tensor:
        """Mean of each bag's rows, zero for an empty bag: [B, F, D]."""
        if isinstance(lookup, PaddedLookup):
            return lookup.means(lambda index: F.embedding(index, self.weight))
        return _BagMeans.apply(self.weight, lookup, self.mask, self.void).view(*lookup.shape, -1)

    def sums(self, lookup: Lookup) -> Tensor:
        """Sum of :meth:`forward` over the fields, for tables that are not pruned: [B, D]."""
        if isinstance(lookup, PaddedLookup):
            return self(lookup).sum(1)
        return cast(Tensor, _FieldSums.apply(self.weight, lookup))


def tables(module: nn.Module) -> Iterator[Table]:
    """Every table inside ``module``."""
    return (m for m in module.modules() if isinstance(m, Table))
