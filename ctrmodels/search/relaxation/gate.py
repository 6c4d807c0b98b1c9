"""AIM's stand-in for a choice of dimensions: a gate on each."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ctrmodels.data.schema import Schema
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.embedding import INIT_SD
from ctrmodels.nn.rows import RowEmbedding, RowNorm, Touched
from ctrmodels.nn.table import Segments, Table, by_rows


class _Gated(torch.autograd.Function):
    """Rows [U, D] times the gates of accumulators [V, D], which get the gradients of gates, also of those at zero."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, accumulators: Tensor, segments: Segments, level: float) -> Tensor:
        out, gates = compiled().gate(rows.contiguous(), accumulators, segments.rows, level)
        ctx.segments, ctx.size = segments, accumulators.shape
        ctx.save_for_backward(rows, gates)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, gates = ctx.saved_tensors
        return gradients[0] * gates, by_rows(ctx.segments, gradients[0] * rows, ctx.size), None, None


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
        values = self.norm(values, touched, torch.ones_like(self.norm.mean))
        if kernels(values):
            return cast(Tensor, _Gated.apply(values, self.gates.weight, touched.segments, float(self.level)))
        accumulated = touched.of(self.gates)
        # Dual averaging adds up the gradients of the gate, also where it is zero: so a gate can come back.
        return values * (accumulated + (self.thresholded(accumulated) - accumulated).detach())

    def thresholded(self, accumulated: Tensor) -> Tensor:
        """The gates of accumulators."""
        return torch.sign(accumulated) * (accumulated.abs() - self.level).clamp(min=0.0)

    @torch.no_grad()
    def kept(self) -> Tensor:
        """bool [S, D] or [V, D]: which gates are not zero now."""
        gates = self.gates
        return self.thresholded(gates.weight) != 0 if isinstance(gates, Table) else gates != 0
