"""Differentiable stand-ins for discrete choices of an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ctrmodels.nn.rows import RowEmbedding, RowNorm, Touched
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

    Attributes:
        before_reading: called with the rows of a batch before their own thresholds are read, which may be behind.
    """

    def __init__(self, schema: Schema, dim: int, threshold_init: float,
                 granularity: Granularity = "value_dimension") -> None:
        super().__init__(schema, dim)
        self.table = Table(schema.total_vocab, dim, INIT_SD)
        self.granularity = granularity
        self.before_reading: Callable[[Tensor], None] | None = None
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
            if self.before_reading is not None:
                self.before_reading(touched.rows)
            if kernels(self.thresholds.weight):
                return cast(Tensor, _SoftRows.apply(self.table.weight, self.thresholds.weight, touched.segments))
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
        return self.table.weight[::every].abs() / torch.sigmoid(thresholds)


class WidthChoice(nn.Module):
    """A probability per id space and candidate width.

    ``p = softmax((log softmax(theta) + G) / tau)`` with Gumbel noise G while training, without noise in evaluation.
    "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW 2021, equations 3-5.

    Args:
        n_spaces: S.
        candidates: the widths d_1 .. d_N.

    Attributes:
        theta: [S, N] architecture logits.
        temperature: tau.
        uniform: while True (warm-up) p is 1/N for all.
    """

    def __init__(self, n_spaces: int, candidates: Sequence[int]) -> None:
        super().__init__()
        self.candidates = tuple(candidates)
        self.theta = nn.Parameter(torch.zeros(n_spaces, len(candidates)))
        self.temperature, self.uniform = 1.0, True

    def forward(self) -> Tensor:
        """[S, N], rows sum to 1."""
        if self.uniform:
            return torch.full_like(self.theta, 1 / len(self.candidates)).detach()
        logits = F.log_softmax(self.theta, 1)
        if self.training:
            noise = torch.rand_like(logits).clamp_(1e-10, 1 - 1e-7)
            logits = logits - torch.log(-torch.log(noise))
        return torch.softmax(logits / self.temperature, 1)

    def chosen(self) -> tuple[int, ...]:
        """The most probable width of every id space."""
        best = self.theta.detach().argmax(1).cpu().numpy()
        return tuple(int(d) for d in np.asarray(self.candidates)[best])


class PrefixMixture(RowEmbedding):
    """One table whose first d_n columns are candidate n, filled up with zeros.

    Normalising a candidate normalises its columns, and candidates share them: the mixture is the normalised row, each
    column weighted by the probability that the width reaches it. It costs hardly more than the table.

    Args:
        schema: the log.
        candidates: the widths d_1 .. d_N; the largest is the common width D.
    """

    reach: Tensor

    def __init__(self, schema: Schema, candidates: Sequence[int]) -> None:
        super().__init__(schema, max(candidates))
        self.choice = WidthChoice(len(schema.id_spaces), candidates)
        self.table = Table(schema.total_vocab, self.dim, INIT_SD)
        self.norm = RowNorm(len(schema.id_spaces), self.dim)
        widths = torch.tensor(self.choice.candidates).unsqueeze(1)
        self.register_buffer("reach", (torch.arange(self.dim) < widths).float(), persistent=False)  # [N, D]

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        scale = (self.choice().unsqueeze(2) * self.reach).sum(1)  # [S, D]
        return self.norm(touched.of(self.table), touched, scale)


class MixtureEmbedding(FieldEmbedding):
    """Every id space in all candidate widths at once, mixed by a probability per id space and width.

    Candidate n of a field is looked up at width d_n, brought to the common width by a linear map or by zeros,
    normalised over the batch (per field and candidate, without scale and shift, so that no later layer can undo the
    comparison), and weighted by p_n. "AutoDim: Field-aware Embedding Dimension Search in Recommender
    Systems", WWW 2021, equations 1-5.

    Args:
        schema: the log.
        candidates: the widths d_1 .. d_N; the largest is the common width.
        shared: whether candidate n is the first d_n columns of one table; otherwise each has a table of its own.
        projected: whether candidates are brought to the common width by linear maps; otherwise by zeros.
    """

    def __init__(self, schema: Schema, candidates: Sequence[int], shared: bool = False, projected: bool = True) -> None:
        super().__init__(schema, max(candidates))
        spaces = schema.id_spaces
        order = [*schema.id_fields, *schema.sequence_fields]
        index = {f.name: i for i, f in enumerate(spaces)}
        self.owner = [index[f.of or f.name] for f in order]
        self.choice, self.shared = WidthChoice(len(spaces), candidates), shared
        self.tables = nn.ModuleList(
            Table(schema.total_vocab, d, INIT_SD) for d in ([self.dim] if shared else candidates))
        self.projections = nn.ParameterList(
            nn.Parameter(torch.empty(len(spaces), d, self.dim).uniform_(-1, 1) * (6 / (d + self.dim)) ** 0.5)
            for d in (candidates if projected else ()))
        self.norms = nn.ModuleList(BatchNorm(len(order) * self.dim) for _ in candidates)

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]."""
        p = self.choice()[self.owner]  # [F, N]
        tables = [table(lookup) for table in self.tables]  # [B, F, d_n] each
        mixed: Tensor | None = None
        for n, (width, norm) in enumerate(zip(self.choice.candidates, self.norms, strict=True)):
            rows = tables[0][..., :width] if self.shared else tables[n]
            if self.projections:
                wide = torch.einsum("bfi,fio->bfo", rows, self.projections[n][self.owner])
            else:
                wide = F.pad(rows, (0, self.dim - width))
            scaled = norm(wide.flatten(1)).view_as(wide) * p[:, n].unsqueeze(1)
            mixed = scaled if mixed is None else mixed + scaled
        assert mixed is not None
        return mixed


class GatedEmbedding(RowEmbedding):
    """A gate on every dimension of a field or of an id, behind a normalisation that keeps embeddings from undoing it.

    "AIM: Automatic Interaction Machine for Click-Through Rate Prediction", TKDE 2021, section 3.4 (embedding dimension
    search): there the operands of every interaction are normalised, here the embedding that all of them read.

    Args:
        schema: the log.
        dim: width D.
        by_value: whether every id has gates of its own; otherwise an id space has.
        init: where gates start.

    Attributes:
        gates: [S, D] gates; or, by value, the accumulators of dual averaging [V, D] as a table, of which
            ``sign(v) max(|v| - level, 0)`` is the gate: so a gate that no batch touches needs no step.
        level: the threshold of now.
    """

    def __init__(self, schema: Schema, dim: int, by_value: bool, init: float) -> None:
        super().__init__(schema, dim)
        self.table = Table(schema.total_vocab, dim, INIT_SD)
        self.norm = RowNorm(len(schema.id_spaces), dim)
        self.level = torch.zeros(())
        if by_value:
            self.gates: nn.Parameter | Table = Table(schema.total_vocab, dim)
            nn.init.constant_(self.gates.weight, init)
        else:
            self.gates = nn.Parameter(torch.full((len(schema.id_spaces), dim), init))

    @property
    def parameter(self) -> nn.Parameter:
        """What an optimiser of its own moves."""
        return self.gates.weight if isinstance(self.gates, Table) else self.gates

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        values = touched.of(self.table)
        if not isinstance(self.gates, Table):
            return self.norm(values, touched, self.gates)
        accumulated = touched.of(self.gates)
        # Dual averaging adds up the gradients of the gate, also where it is zero: so a gate can come back.
        gates = accumulated + (self.thresholded(accumulated) - accumulated).detach()
        return self.norm(values, touched, torch.ones_like(self.norm.mean)) * gates

    def thresholded(self, accumulated: Tensor) -> Tensor:
        """The gates of accumulators."""
        return torch.sign(accumulated) * (accumulated.abs() - self.level).clamp(min=0.0)

    @torch.no_grad()
    def kept(self) -> Tensor:
        """bool [S, D] or [V, D]: which gates are not zero now."""
        gates = self.gates
        return self.thresholded(gates.weight) != 0 if isinstance(gates, Table) else gates != 0
