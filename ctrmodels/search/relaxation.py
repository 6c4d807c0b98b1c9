"""Differentiable stand-ins for discrete choices of an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.embedding import INIT_SD, FieldEmbedding
from ctrmodels.nn.norm import BatchNorm
from ctrmodels.nn.rows import RowEmbedding, Touched
from ctrmodels.nn.table import Lookup, Segments, Table, by_rows

Granularity = Literal["global", "dimension", "field", "field_dimension", "value", "value_dimension"]


class _SoftRows(torch.autograd.Function):
    """:func:`soft_threshold` of touched rows with thresholds of their own, in one pass over both tables."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, thresholds: Tensor, segments: Segments) -> Tensor:
        out, level = compiled().soften(table, thresholds, segments.rows)
        ctx.segments, ctx.sizes = segments, (table.shape, thresholds.shape)
        ctx.save_for_backward(out, level)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        of_value, of_threshold = compiled().soften_backward(gradients[0].contiguous(), *ctx.saved_tensors)
        if ctx.sizes[1][1] == 1:
            of_threshold = of_threshold.sum(1, keepdim=True)
        return (by_rows(ctx.segments, of_value, ctx.sizes[0]), by_rows(ctx.segments, of_threshold, ctx.sizes[1]), None)


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
    """

    def __init__(self, schema: Schema, dim: int, threshold_init: float,
                 granularity: Granularity = "value_dimension") -> None:
        super().__init__(schema, dim)
        self.table = Table(schema.total_vocab, dim, INIT_SD)
        self.granularity = granularity
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
                return cast(Tensor, _SoftRows.apply(self.table.weight, self.thresholds.weight, touched.segments))
            return soft_threshold(touched.of(self.table), touched.of(self.thresholds))
        thresholds = touched.by_space(self.thresholds) if len(self.thresholds) > 1 else self.thresholds
        return soft_threshold(touched.of(self.table), thresholds)

    @torch.no_grad()
    def margins(self, every: int = 1) -> Tensor:
        """``|v| / sigmoid(s)`` [.., D] of every ``every``-th row: values above 1 are not zero."""
        thresholds = self.parameter
        if self.granularity.startswith("field"):
            thresholds = torch.repeat_interleave(thresholds, self.bounds.diff(), 0)
        if len(thresholds) > 1:
            thresholds = thresholds[::every]
        return self.table.weight[::every].abs() / torch.sigmoid(thresholds)


class MixtureEmbedding(FieldEmbedding):
    """Every id space in all candidate widths at once, mixed by a probability per id space and width.

    Candidate n of a field is looked up at width d_n, brought to the common width by a linear map, normalised
    over the batch (per field and candidate, without scale and shift, so that no later layer can undo the
    comparison), and weighted by p_n. "AutoDim: Field-aware Embedding Dimension Search in Recommender
    Systems", WWW 2021, equations 1-5.

    Args:
        schema: the log.
        candidates: the widths d_1 .. d_N; the largest is the common width.

    Attributes:
        theta: [S, N] architecture logits of the S id spaces; ``p = softmax((log softmax(theta) + G) / tau)``
            with Gumbel noise G while training, without noise in evaluation.
        temperature: tau.
        uniform: while True (warm-up) p is 1/N for all.
    """

    def __init__(self, schema: Schema, candidates: Sequence[int]) -> None:
        super().__init__(schema, max(candidates))
        self.candidates = tuple(candidates)
        spaces = schema.id_spaces
        order = [*schema.id_fields, *schema.sequence_fields]
        index = {f.name: i for i, f in enumerate(spaces)}
        self.owner = [index[f.of or f.name] for f in order]
        self.tables = nn.ModuleList(Table(schema.total_vocab, d, INIT_SD) for d in candidates)
        self.projections = nn.ParameterList(
            nn.Parameter(torch.empty(len(spaces), d, self.dim).uniform_(-1, 1) * (6 / (d + self.dim)) ** 0.5)
            for d in candidates)
        self.norms = nn.ModuleList(BatchNorm(len(order) * self.dim) for _ in candidates)
        self.theta = nn.Parameter(torch.zeros(len(spaces), len(candidates)))
        self.temperature, self.uniform = 1.0, True

    def probabilities(self) -> Tensor:
        """[S, N], rows sum to 1."""
        if self.uniform:
            return torch.full_like(self.theta, 1 / len(self.candidates)).detach()
        logits = F.log_softmax(self.theta, 1)
        if self.training:
            noise = torch.rand_like(logits).clamp_(1e-10, 1 - 1e-7)
            logits = logits - torch.log(-torch.log(noise))
        return torch.softmax(logits / self.temperature, 1)

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]."""
        p = self.probabilities()[self.owner]  # [F, N]
        mixed: Tensor | None = None
        for n, (table, projection, norm) in enumerate(
                zip(self.tables, self.projections, self.norms, strict=True)):
            rows = table(lookup)  # [B, F, d_n]
            wide = torch.einsum("bfi,fio->bfo", rows, projection[self.owner])  # [B, F, D]
            scaled = norm(wide.flatten(1)).view_as(wide) * p[:, n].unsqueeze(1)
            mixed = scaled if mixed is None else mixed + scaled
        assert mixed is not None
        return mixed

    def chosen(self) -> tuple[int, ...]:
        """The most probable width of every id space."""
        best = self.theta.detach().argmax(1).cpu().numpy()
        return tuple(int(d) for d in np.asarray(self.candidates)[best])
