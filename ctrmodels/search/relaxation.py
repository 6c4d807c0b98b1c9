"""Differentiable stand-ins for discrete choices of an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import INIT_SD, FieldEmbedding
from ctrmodels.nn.norm import BatchNorm
from ctrmodels.nn.table import Lookup, Table


class SoftThresholdEmbedding(FieldEmbedding):
    """A table whose small values are zero: ``sign(v) * max(|v| - sigmoid(s), 0)`` with learned thresholds s.

    "Learnable Embedding Sizes for Recommender Systems" (PEP), ICLR 2021, equation 4.

    Args:
        schema: the log.
        dim: width D.
        threshold_init: initial s.
        granularity: one s for everything (``global``), per dimension, per value (row), or per value and
            dimension.
    """

    def __init__(self, schema: Schema, dim: int, threshold_init: float,
                 granularity: str = "value_dimension") -> None:
        super().__init__(schema, dim)
        rows = schema.total_vocab
        shape = {"global": (1, 1), "dimension": (1, dim), "value": (rows, 1), "value_dimension": (rows, dim)}
        self.table = nn.Parameter(torch.empty(rows, dim).normal_(std=INIT_SD))
        self.threshold = nn.Parameter(torch.full(shape[granularity], threshold_init))

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]; the thresholds act once on every row that the batch touches."""
        touched, place = lookup.distinct()
        v = F.embedding(touched, self.table)
        s = self.threshold if self.threshold.shape[0] == 1 else F.embedding(touched, self.threshold)
        rows = torch.sign(v) * F.relu(v.abs() - torch.sigmoid(s))  # [U, D]
        if lookup.begins is None:
            return F.embedding(place, rows).view(*lookup.shape, self.dim)
        return F.embedding_bag(place, rows, lookup.begins, mode="mean").view(*lookup.shape, self.dim)

    @torch.no_grad()
    def kept(self) -> Tensor:
        """bool [V, D]: which values are not zero now."""
        return self.table.abs() > torch.sigmoid(self.threshold)


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
