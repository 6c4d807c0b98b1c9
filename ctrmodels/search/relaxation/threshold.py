"""PEP's stand-in for a choice of values: a soft threshold on each."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.embedding import INIT_SD
from ctrmodels.nn.flat import LaidOut, contiguous, flat_width, gathered, in_one_pass
from ctrmodels.nn.rows import RowEmbedding, Touched
from ctrmodels.nn.table import Lookup, Segments, Table, by_rows
from ctrmodels.search.optimiser import CoupledAdam, Late

Granularity = Literal["global", "dimension", "field", "field_dimension", "value", "value_dimension"]


def _soften(table: Tensor, thresholds: Tensor, rows: Tensor, late: Late | None) -> tuple[Tensor, Tensor]:
    """:func:`soft_threshold` of ``rows`` with thresholds of their own, in one pass over both tables, and their level.

    Thresholds that are ``late`` are brought to the present on the way.
    """
    if late is None:
        return cast(tuple[Tensor, Tensor], compiled().soften(table, thresholds, rows))
    return cast(tuple[Tensor, Tensor], compiled().soften_late(table, thresholds, *late.state, rows, *late.settings))


def _gradients(by_value: tuple[Tensor, Tensor], segments: Segments,
               sizes: tuple[torch.Size, torch.Size]) -> tuple[Tensor, Tensor]:
    """Of both tables, from those of the touched rows' values and thresholds, [U, D] each."""
    of_value, of_threshold = by_value
    if sizes[1][1] == 1:
        of_threshold = of_threshold.sum(1, keepdim=True)
    return by_rows(segments, of_value, sizes[0]), by_rows(segments, of_threshold, sizes[1])


class _SoftRows(torch.autograd.Function):
    """The rows of a batch, softened: [U, D]."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, thresholds: Tensor, segments: Segments, late: Late | None) -> Tensor:
        out, level = _soften(table, thresholds, segments.rows, late)
        ctx.segments, ctx.sizes = segments, (table.shape, thresholds.shape)
        ctx.save_for_backward(out, level)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = compiled().soften_backward(gradients[0].contiguous(), *ctx.saved_tensors)
        return *_gradients(found, ctx.segments, ctx.sizes), None, None


class _SoftLookUp(torch.autograd.Function):
    """The softened rows in all forms that models read; both gradients come from those of all forms in one pass."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, thresholds: Tensor, lookup: Lookup, late: Late | None, numeric: Tensor,
                pairs: bool, bf16: bool, asked: bool) -> tuple[Tensor, Tensor, Tensor]:
        rows, level = _soften(table, thresholds, lookup.segments.rows, late)
        width = flat_width(lookup.shape[1], rows.shape[1], numeric.shape[1])
        fields, flat, pair_sum, total = gathered(rows, lookup.places, numeric, width, pairs, bf16, asked)
        ctx.segments, ctx.sizes = lookup.segments, (table.shape, thresholds.shape)
        ctx.save_for_backward(rows, total, level)
        ctx.set_materialize_grads(False)
        return fields, flat, pair_sum

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, total, level = ctx.saved_tensors
        fields, flat, pair_sum = contiguous(gradients)
        found = compiled().soften_flat_backward(
            flat, fields, pair_sum, rows, total, ctx.segments.order, ctx.segments.begins, level)
        return *_gradients(found, ctx.segments, ctx.sizes), *[None] * 6


def soft_threshold(values: Tensor, thresholds: Tensor) -> Tensor:
    """``sign(v) * max(|v| - sigmoid(s), 0)``; where it is zero neither value nor threshold has a gradient."""
    level = torch.sigmoid(thresholds)
    return values - torch.minimum(torch.maximum(values, -level), level)


class SoftThresholdEmbedding(RowEmbedding):
    """A table whose small values are zero: ``sign(v) * max(|v| - sigmoid(s), 0)`` with learned thresholds s.

    "Learnable Embedding Sizes for Recommender Systems" (PEP), ICLR 2021, equation 4.

    Args:
        schema: the log.
        dim: width D.
        threshold_init: initial s.
        granularity: one s for everything (``global``), per ``dimension``, per ``field``, per ``field_dimension``, per
            ``value`` (an id's row), or per ``value_dimension``.

    Attributes:
        optimiser: of thresholds of their own, if it leaves those behind that no batch touches: they catch up when read.
    """

    def __init__(self, schema: Schema, dim: int, threshold_init: float,
                 granularity: Granularity = "value_dimension") -> None:
        super().__init__(schema, dim)
        self.table = Table(schema.total_vocab, dim, INIT_SD)
        self.granularity = granularity
        self.optimiser: CoupledAdam | None = None
        width = dim if granularity.endswith("dimension") else 1
        if granularity.startswith("value"):
            self.thresholds: nn.Parameter | Table = Table(schema.total_vocab, width)
            nn.init.constant_(self.thresholds.weight, threshold_init)
        else:
            spaces = len(schema.id_spaces) if granularity.startswith("field") else 1
            self.thresholds = nn.Parameter(torch.full((spaces, width), threshold_init))

    @property
    def by_row(self) -> bool:
        """Whether every id has thresholds of its own."""
        return isinstance(self.thresholds, Table)

    @property
    def parameter(self) -> nn.Parameter:
        """The thresholds, which take optimiser steps of their own."""
        return self.thresholds.weight if isinstance(self.thresholds, Table) else self.thresholds

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        if isinstance(self.thresholds, Table):
            if kernels(self.thresholds.weight):
                return cast(Tensor, _SoftRows.apply(
                    self.table.weight, self.thresholds.weight, touched.segments, self._late()))
            if self.optimiser is not None:
                self.optimiser.catch_up(touched.rows)
            return soft_threshold(touched.of(self.table), touched.of(self.thresholds))
        thresholds = touched.by_space(self.thresholds) if len(self.thresholds) > 1 else self.thresholds
        return soft_threshold(touched.of(self.table), thresholds)

    def laid_out(self, batch: Batch, lookup: Lookup, numeric: Tensor, pairs: bool) -> LaidOut:
        """See :class:`~ctrmodels.nn.embedding.FieldEmbedding`."""
        bf16 = in_one_pass(lookup, numeric, self.table.weight) if self.by_row else None
        if bf16 is None:
            return super().laid_out(batch, lookup, numeric, pairs)
        return LaidOut(*_SoftLookUp.apply(
            self.table.weight, self.parameter, lookup, self._late(), numeric.contiguous(), pairs, bf16, self.read))

    def _late(self) -> Late | None:
        return None if self.optimiser is None else self.optimiser.late(self.parameter)

    @torch.no_grad()
    def margins(self, every: int = 1) -> Tensor:
        """``|v| / sigmoid(s)`` [.., D] of every ``every``-th row: values above 1 are not zero."""
        thresholds: Tensor = self.parameter
        if self.granularity.startswith("field"):
            thresholds = torch.repeat_interleave(thresholds, self.bounds.diff(), 0)
        if len(thresholds) > 1:
            thresholds = thresholds[::every]
        return self.table.weight[::every].abs() / torch.sigmoid(thresholds.contiguous())
