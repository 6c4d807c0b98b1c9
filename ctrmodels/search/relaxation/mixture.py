"""AutoDim's stand-in for a choice of widths: a mixture of all of them."""

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
from ctrmodels.nn.rows import RowEmbedding, RowNorm, Touched
from ctrmodels.nn.table import Lookup, Table


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
