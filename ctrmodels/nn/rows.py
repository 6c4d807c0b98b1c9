"""Embeddings computed once for every row of a table that a batch touches, however often it is looked up.

A search's relaxation transforms rows: thresholds, gates, masks, mixtures. The rows of a batch are a fraction of
its look-ups, so that the transformation costs a fraction of what it would on the looked-up fields.

Notation: B rows of a batch, F fields, U distinct rows of the table among its look-ups, S id spaces, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctrmodels import ranks
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.flat import LaidOut, look_up_rows
from ctrmodels.nn.table import Lookup, Segments, Table, by_rows, steps_lookup


@dataclass(frozen=True)
class Touched:
    """The distinct rows of one batch, in the layout of all id spaces.

    Attributes:
        segments: its look-ups, grouped by row.
        bounds: int64 [S + 1], where each id space begins among the rows of the table.
        n: number of look-ups.
    """

    segments: Segments
    bounds: Tensor
    n: int

    @property
    def rows(self) -> Tensor:
        """int64 [U], rising."""
        return self.segments.rows

    @cached_property
    def cuts(self) -> Tensor:
        """int64 [S + 1]: where each id space begins among the U rows, which lie space after space."""
        return torch.searchsorted(self.rows, self.bounds)

    @cached_property
    def spaces(self) -> Tensor:
        """int64 [U]: the id space of every row."""
        sizes = self.cuts.diff()
        return torch.repeat_interleave(sizes, output_size=len(self.rows))

    @cached_property
    def counts(self) -> Tensor:
        """float32 [U]: look-ups of every row in this batch."""
        begins = self.segments.begins
        return torch.cat([begins, begins.new_tensor([self.n])]).diff().float()

    def of(self, table: Table) -> Tensor:
        """[U, D] rows of ``table``, whose gradient is sparse."""
        return self.of_all([table])[0]

    def of_all(self, tables: Sequence[Table]) -> list[Tensor]:
        """The same of several tables in one pass, each [U, D] with a D of its own."""
        return list(_Rows.apply(self.segments, [t.mask for t in tables], *(t.weight for t in tables)))

    def by_space(self, values: Tensor) -> Tensor:
        """[S, ...] → [U, ...]: to every row what its id space has."""
        return cast(Tensor, _BySpace.apply(values.flatten(1), self)).view(len(self.rows), *values.shape[1:])

    def times(self, values: Tensor, maps: Tensor) -> Tensor:
        """[U, I] → [U, O]: every row times the linear map of its id space, of [S, I, O]."""
        return cast(Tensor, _SpaceMaps.apply(values.contiguous(), maps, self.cuts.tolist()))

    def space_sums(self, values: Tensor) -> Tensor:
        """[U, D] → [S, D]: sums over the rows of each id space."""
        return cast(Tensor, _SpaceSums.apply(values, self))


@dataclass(frozen=True)
class ByRow:
    """An embedding of a batch whose bags all hold a single row, which no two fields share.

    Attributes:
        rows: [U, D] its values, those of ``lookup.segments.rows``.
        lookup: which of them a field of a row of the batch has.
        touched: the same rows by id space, which every field has one of.
    """

    rows: Tensor
    lookup: Lookup
    touched: Touched


class RowEmbedding(FieldEmbedding):
    """Base of embeddings that are a function of the rows of tables over all id spaces.

    Attributes:
        bounds: int64 [S + 1], where each id space begins.
    """

    bounds: Tensor

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__(schema, dim)
        sizes = torch.tensor([0, *(f.vocab for f in schema.id_spaces)])
        self.register_buffer("bounds", torch.cumsum(sizes, 0), persistent=False)
        self.offsets = schema.offsets

    @abstractmethod
    def rows(self, touched: Touched) -> Tensor:
        """[U, D] embeddings of the touched rows."""

    def touched(self, lookup: Lookup) -> Touched:
        """The distinct rows of ``lookup``."""
        return Touched(lookup.segments, self.bounds, len(lookup.index))

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]."""
        return lookup.means_of(self.rows(self.touched(lookup)))

    def laid_out(self, batch: Batch, lookup: Lookup, numeric: Tensor, pairs: bool) -> LaidOut:
        """See :class:`FieldEmbedding`."""
        return look_up_rows(self.rows(self.touched(lookup)), lookup, numeric, pairs, self.read)

    def steps(self, batch: Batch, name: str) -> Tensor:
        """[B, L, D]."""
        return self(batch, steps_lookup(batch.sequences[name], self.offsets[name]))


class RowNorm(nn.Module):
    """Batch normalisation of touched rows per id space and dimension, without scale and shift.

    The statistics are those of the looked-up embeddings: a row counts as often as the batch looks it up. No later
    layer can undo a gate behind it by a scale of its own.

    Args:
        n_spaces: S.
        dim: D.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, n_spaces: int, dim: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(n_spaces, dim))
        self.register_buffer("variance", torch.ones(n_spaces, dim))

    def forward(self, x: Tensor, touched: Touched, scale: Tensor) -> Tensor:
        """[U, D] → [U, D], multiplied by each space's ``scale`` [S, D]."""
        if not self.training:
            return (x - touched.by_space(self.mean)) * touched.by_space(scale * (self.variance + self.eps).rsqrt())
        out, centre, variance, n = self.normalised(x, touched, scale)
        self.follow(centre, variance, n)
        return out

    def normalised(self, x: Tensor, touched: Touched, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:meth:`forward` by the statistics of this batch, and these: mean and variance [S, D], look-ups [S, 1]."""
        if kernels(x) and ranks.count() == 1:
            return cast(tuple[Tensor, Tensor, Tensor, Tensor], _RowNorm.apply(touched, self.eps, x, scale))
        weight = touched.counts.unsqueeze(1)
        n = self._total(touched.space_sums(weight)).clamp(min=1.0)
        centre = self._total(touched.space_sums(x * weight)) / n
        centred = x - touched.by_space(centre)
        variance = self._total(touched.space_sums(centred.square() * weight)) / n
        return centred * touched.by_space(scale * (variance + self.eps).rsqrt()), centre, variance, n

    @torch.no_grad()
    def follow(self, centre: Tensor, variance: Tensor, n: Tensor) -> None:
        """Draw the running statistics towards those of a batch, as :meth:`normalised` gives them."""
        seen = ((n > 1).float() * self.momentum).expand_as(centre)  # a space without look-ups keeps its statistics
        self.mean.lerp_(centre, seen)
        self.variance.lerp_(variance * n / (n - 1).clamp(min=1.0), seen)

    @staticmethod
    def _total(x: Tensor) -> Tensor:
        return x if ranks.count() == 1 else ranks.mean(x) * ranks.count()


def normalised(rows: Sequence[Tensor], touched: Touched, eps: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """:class:`RowNorm` without scale, by the kernels, in training, of several tables' rows [U, D]: of each the result
    and the statistics [S, D]."""
    spaces = len(touched.bounds) - 1
    found = _RowNorm.apply(touched, eps, *(t for x in rows for t in (x, x.new_ones(spaces, x.shape[1]))))
    return zip(found[::4], found[1::4], found[2::4], strict=True)


class _Rows(torch.autograd.Function):
    """Rows of tables; the gradients are sparse and hold those rows."""

    @staticmethod
    def forward(ctx: Any, segments: Segments, masks: Sequence[Tensor | None], *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.segments, ctx.masks, ctx.sizes = segments, masks, [t.shape for t in tables]
        compiled_ = kernels(*tables)
        if compiled_:
            return tuple(compiled_.gather_rows(list(tables), segments.rows))
        return tuple(t.index_select(0, segments.rows) for t in tables)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(by_rows(ctx.segments, g.contiguous(), size, mask)
                             for g, size, mask in zip(gradients, ctx.sizes, ctx.masks, strict=True))


class _RowNorm(torch.autograd.Function):
    """The training form of :class:`RowNorm` in few passes, of one x and scale after the other; only the first of the
    four outputs of each has a gradient."""

    @staticmethod
    def forward(ctx: Any, touched: Touched, eps: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        found, saved = [], []
        for x, scale in zip(tensors[::2], tensors[1::2], strict=True):
            x, scale = x.contiguous(), scale.contiguous()
            out, *statistics = compiled().row_norm(x, touched.segments.begins, touched.n, touched.cuts, scale, eps)
            saved += [x, scale, *statistics]
            found += [out, *statistics[:2], statistics[2].unsqueeze(1)]
        ctx.touched, ctx.eps = touched, eps
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(*(t for i, t in enumerate(found) if i % 4))
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = []
        for i, gradient in enumerate(gradients[::4]):
            x, scale, mean, variance, n = ctx.saved_tensors[5 * i:5 * i + 5]
            found += (None, None) if gradient is None else compiled().row_norm_backward(
                gradient.contiguous(), x, ctx.touched.segments.begins, ctx.touched.n, ctx.touched.cuts, scale, mean,
                variance, n, ctx.eps)
        return None, None, *found


class _BySpace(torch.autograd.Function):
    """A space's values for each of its rows; backward is :class:`_SpaceSums`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, touched: Touched) -> Tensor:
        ctx.touched = touched
        return values.index_select(0, touched.spaces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sums(gradients[0], ctx.touched), None


class _SpaceMaps(torch.autograd.Function):
    """Rows [U, I] times the map [I, O] of their id space; a space's rows lie side by side."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, maps: Tensor, cuts: list[int]) -> Tensor:
        ctx.save_for_backward(rows, maps)
        ctx.cuts = cuts
        out = rows.new_empty(len(rows), maps.shape[2])
        for f, (a, b) in enumerate(pairwise(cuts)):
            torch.mm(rows[a:b], maps[f], out=out[a:b])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, maps = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_rows, of_maps = torch.empty_like(rows), torch.empty_like(maps)
        for f, (a, b) in enumerate(pairwise(ctx.cuts)):
            torch.mm(gradient[a:b], maps[f].T, out=of_rows[a:b])
            torch.mm(rows[a:b].T, gradient[a:b], out=of_maps[f])
        return of_rows, of_maps, None


class _SpaceSums(torch.autograd.Function):
    """Sums over each space's rows; backward is :class:`_BySpace`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, touched: Touched) -> Tensor:
        ctx.touched = touched
        return _sums(values, touched)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.touched.spaces), None


def _sums(values: Tensor, touched: Touched) -> Tensor:
    """[U, D] → [S, D]; rows of a space lie side by side."""
    return torch.segment_reduce(values.contiguous(), "sum", lengths=touched.cuts.diff(), axis=0, initial=0.0)
