"""PEP's stand-in for a choice of values: a soft threshold on each."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ctrmodels.data.schema import Schema
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.embedding import INIT_SD
from ctrmodels.nn.rows import RowEmbedding, Touched
from ctrmodels.nn.table import Segments, Table, by_rows
from ctrmodels.search.optimiser import CoupledAdam, Late

Granularity = Literal["global", "dimension", "field", "field_dimension", "value", "value_dimension"]


class _SoftRows(torch.autograd.Function):
    """:func:`soft_threshold` of touched rows with thresholds of their own, in one pass over both tables.

    Thresholds that are ``late`` are brought to the present on the way.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, thresholds: Tensor, segments: Segments, late: Late | None) -> Tensor:
        if late is None:
            out, level = compiled().soften(table, thresholds, segments.rows)
        else:
            out, level = compiled().soften_late(table, thresholds, *late.state, segments.rows, *late.settings)
        ctx.segments, ctx.sizes = segments, (table.shape, thresholds.shape)
        ctx.save_for_backward(out, level)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_value, of_threshold = compiled().soften_backward(gradients[0].contiguous(), *ctx.saved_tensors)
        if ctx.sizes[1][1] == 1:
            of_threshold = of_threshold.sum(1, keepdim=True)
        table, thresholds = ctx.sizes
        return by_rows(ctx.segments, of_value, table), by_rows(ctx.segments, of_threshold, thresholds), None, None


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
                late = None if self.optimiser is None else self.optimiser.late(self.thresholds.weight)
                return cast(Tensor, _SoftRows.apply(
                    self.table.weight, self.thresholds.weight, touched.segments, late))
            if self.optimiser is not None:
                self.optimiser.catch_up(touched.rows)
            return soft_threshold(touched.of(self.table), touched.of(self.thresholds))
        thresholds = touched.by_space(self.thresholds) if len(self.thresholds) > 1 else self.thresholds
        return soft_threshold(touched.of(self.table), thresholds)

    @torch.no_grad()
    def margins(self, every: int = 1) -> Tensor:
        """``|v| / sigmoid(s)`` [.., D] of every ``every``-th row: values above 1 are not zero."""
        thresholds: Tensor = self.parameter
        if self.granularity.startswith("field"):
            thresholds = torch.repeat_interleave(thresholds, self.bounds.diff(), 0)
        if len(thresholds) > 1:
            thresholds = thresholds[::every]
        return self.table.weight[::every].abs() / torch.sigmoid(thresholds.contiguous())
