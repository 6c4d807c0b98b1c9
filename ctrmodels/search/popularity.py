"""An embedding whose width follows how often an id has been seen so far.

Notation: B rows of a batch, F fields, U distinct rows of the table among its look-ups, V ids of all id spaces, S id
spaces, N candidate widths d_1 .. d_N, D common width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels import ranks
from ctrmodels.data.schema import Schema
from ctrmodels.native import kernels
from ctrmodels.nn.embedding import INIT_SD, projection
from ctrmodels.nn.rows import RowEmbedding, RowNorm, Touched
from ctrmodels.nn.table import Lookup, Table
from ctrmodels.search.relaxation.candidates import Candidates

BUCKETS = 11  # of int32 counts
POPULARITY_WIDTH = 32


def bucket(occurrences: Tensor) -> Tensor:
    """int64 floor(log_8(1 + n)) of counts n: 0 to 6, 7 to 62, 63 to 510, and so on.

    Buckets are this wide because each has to learn its width from its own events: with narrower ones, neighbours of
    equal need come out in random order.
    """
    begins = torch.tensor([8**k - 1 for k in range(1, BUCKETS)], device=occurrences.device)
    return torch.bucketize(occurrences, begins, right=True)


class PopularityController(nn.Module):
    """From an id's popularity and context to what each candidate width weighs in its embedding.

    ``softmax(W_2 tanh(LN(W_p LN(E[bucket]) + W_c [alpha; loss] + b)) + c)``. Public code for the method normalises over
    the batch where this normalises over a row's own values: an id's width does not depend on whom it shares a batch
    with, and a single id can be asked for. ``W_2`` starts at zero, so that all candidates weigh the same until the
    controller has learnt otherwise. What depends on the bucket alone is computed per bucket.

    Args:
        n_candidates: N.
        hidden: width of the layer between.
        context: whether the id's last alpha and last loss are read; without them ids of one bucket have one alpha.
    """

    def __init__(self, n_candidates: int, hidden: int, context: bool) -> None:
        super().__init__()
        width = POPULARITY_WIDTH
        self.popularity = nn.Sequential(nn.Embedding(BUCKETS, width), nn.LayerNorm(width), nn.Linear(width, hidden))
        self.context = nn.Linear(n_candidates + 1, hidden, bias=False) if context else None
        last = nn.Linear(hidden, n_candidates)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.decide = nn.Sequential(nn.LayerNorm(hidden), nn.Tanh(), last, nn.Softmax(1))

    def per_bucket(self) -> Tensor:
        """[BUCKETS, N] of ids without context."""
        return cast(Tensor, self.decide(self._of_buckets()))

    def forward(self, occurrences: Tensor, alpha: Tensor, loss: Tensor) -> Tensor:
        """int [U] and the context, [U, N] and [U, 1] → [U, N], rows sum to 1."""
        assert self.context is not None
        of_bucket = self._of_buckets().index_select(0, bucket(occurrences))
        return cast(Tensor, self.decide(of_bucket + self.context(torch.cat([alpha, loss], 1))))

    def _of_buckets(self) -> Tensor:
        embedding = cast(nn.Embedding, self.popularity[0])
        return cast(Tensor, self.popularity[1:](embedding.weight))


class PopularityMixture(RowEmbedding):
    """Every id in all candidate widths at once, mixed by what a controller makes of its popularity so far.

    Candidate n of an id is brought to the common width by a linear map per id space, normalised per id space, candidate
    and dimension, and squashed: ``e = sum_n alpha_n tanh(BN(W_n e_n))``, where alpha comes from the
    :class:`PopularityController` of the id's side. The maps have no bias, which the normalisation would take away.
    Public code shares one normalisation among a side's candidates, whose scales would then differ in evaluation.

    "AutoEmb: Automated Embedding Dimensionality Search in Streaming Recommendations", ICDM 2021; reconstructed from
    descriptions and public code of the method, which knows one user and one item where a log has id spaces with sides.

    Id spaces with fewer ids than ``min_vocab`` and those of numbers, whose ids have no popularity, take no part: their
    ids have a plain row of width D.

    Shapes: ``forward`` gives [B, F, D].

    Args:
        schema: the log.
        candidates: the widths, rising.
        dim: D.
        min_vocab: ids that an id space needs to take part.
        hidden: width of the controllers' layer.
        context: whether the controllers read last alpha and last loss.

    Attributes:
        occurrences: int32 [V], how often every id occurred in what was observed. Steps of a sequence that use another
            field's ids are not counted: they repeat what was observed before.
        last_alpha: [V, N], the id's alpha when it was last observed; at first one-hot on the smallest width. Kept for
            controllers that read it.
        last_loss: [V, 1], mean loss of the rows with the id when it was last observed; at first 1. Likewise.

    Raises:
        ValueError: no id space takes part.
    """

    occurrences: Tensor
    last_alpha: Tensor
    last_loss: Tensor
    side_of: Tensor
    takes: Tensor
    counted: Tensor

    def __init__(self, schema: Schema, candidates: Sequence[int], dim: int, min_vocab: int = 100, hidden: int = 64,
                 context: bool = True) -> None:
        super().__init__(schema, dim)
        spaces, n = schema.id_spaces, len(candidates)
        self.candidates, self.context = tuple(candidates), context
        self.taking = [f.kind != "numeric" and f.vocab >= min_vocab for f in spaces]
        if not any(self.taking):
            raise ValueError(f"no id space has the {min_vocab} ids that a width by popularity is asked for")
        sides = sorted({f.side for f, takes in zip(spaces, self.taking, strict=True) if takes})
        self.controllers = nn.ModuleList(PopularityController(n, hidden, context) for _ in sides)
        self.table = Table(schema.total_vocab, max(sum(candidates), dim), INIT_SD)
        self.projections = nn.ParameterList(projection(len(spaces), d, dim) for d in candidates)
        self.norm = RowNorm(len(spaces), n * dim)  # statistics per dimension: every candidate has its own
        of = [sides.index(f.side) if takes else -1 for f, takes in zip(spaces, self.taking, strict=True)]
        self.register_buffer("side_of", torch.tensor(of), persistent=False)
        counted = [True] * len(schema.id_fields) + [f.of is None for f in schema.sequence_fields]
        self.all_counted = all(counted)
        self.register_buffer("takes", torch.tensor(self.taking), persistent=False)
        self.register_buffer("counted", torch.tensor(counted, dtype=torch.int32), persistent=False)
        self.register_buffer("occurrences", torch.zeros(schema.total_vocab, dtype=torch.int32))
        self.register_buffer("last_alpha", torch.zeros(schema.total_vocab, n))
        self.register_buffer("last_loss", torch.ones(schema.total_vocab, 1))
        self.shares = False
        self.made: Candidates | None = None
        self.forget()

    def forget(self) -> None:
        """Nothing has been observed: a stream begins."""
        self.occurrences.zero_()
        self.last_alpha.zero_()
        self.last_alpha[:, int(np.argmin(self.candidates))] = 1.0
        self.last_loss.fill_(1.0)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside there is one batch, and nothing but the controllers learns before its last pass: all its passes share
        what does not depend on these."""
        self.shares = True
        try:
            yield
        finally:
            self.shares, self.made = False, None

    def alphas(self, rows: Tensor, spaces: Tensor) -> Tensor:
        """What each candidate weighs for the ids ``rows`` [U] of ``spaces`` [U]: [U, N], 0 where no part is taken."""
        sides = self.side_of.index_select(0, spaces)
        if not self.context:
            nothing = self.last_alpha.new_zeros(BUCKETS, len(self.candidates))
            found = torch.cat([nothing, *(cast(PopularityController, c).per_bucket() for c in self.controllers)])
            return found.index_select(0, (sides + 1) * BUCKETS + bucket(self.occurrences.index_select(0, rows)))
        found = self.last_alpha.new_zeros(len(rows), len(self.candidates))
        for side, controller in enumerate(self.controllers):
            place = (sides == side).nonzero().squeeze(1)
            mine = rows.index_select(0, place)
            read = (b.index_select(0, mine) for b in (self.occurrences, self.last_alpha, self.last_loss))
            found = found.index_copy(0, place, controller(*read))
        return found

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        weights = self.alphas(touched.rows, touched.spaces)
        maps = torch.cat([*self.projections], 1)  # [S, I, D]
        if self.training and ranks.count() == 1 and kernels(maps):
            made = self._candidates(touched, maps)
            self._follow(made.mean, made.variance, made.looked_up.unsqueeze(1))
            return made.blend(self.table, maps, weights, self.norm.eps)
        values, n = touched.of(self.table), len(self.candidates)
        parts = values[:, :maps.shape[1]].split(self.candidates, 1)
        wide = torch.cat([touched.times(part, p) for part, p in zip(parts, self.projections, strict=True)], 1)
        scale = torch.ones_like(self.norm.mean)
        if self.training:
            wide, *statistics = self.norm.normalised(wide, touched, scale)
            self._follow(*statistics)
        else:
            wide = self.norm(wide, touched, scale)
        mixed = (torch.tanh(wide).unflatten(1, (n, self.dim)) * weights.unsqueeze(2)).sum(1)
        takes = self.takes.index_select(0, touched.spaces).unsqueeze(1)
        return torch.where(takes, mixed, values[:, :self.dim])

    def _candidates(self, touched: Touched, maps: Tensor) -> Candidates:
        """Those of ``touched``, which an earlier pass may have made."""
        if self.made is None:
            made = Candidates.of(touched, self.table, maps, self.takes, self.candidates)
            self.made = made if self.shares else None
            return made
        assert self.made.touched.segments is touched.segments, "passes over several batches share nothing"
        return self.made

    def _follow(self, *statistics: Tensor) -> None:
        """Keep the statistics of a batch, from the one of its passes that the weights learn from."""
        if self.table.weight.requires_grad:
            self.norm.follow(*statistics)

    @torch.no_grad()
    def observe(self, lookup: Lookup, logit: Tensor, label: Tensor) -> None:
        """Keep what a batch showed: that its ids occurred, their alphas and their losses.

        Args:
            lookup: of the batch.
            logit: [B] what was predicted.
            label: [B] what came, NaN where that is unknown.
        """
        touched = self.touched(lookup)
        rows, bags = touched.rows, touched.segments.bags
        if not self.context and self.all_counted:
            self.occurrences.index_add_(0, rows, touched.counts.int())
            return
        of_lookup = torch.repeat_interleave(touched.counts.long(), output_size=touched.n)
        if self.context:
            self.last_alpha.index_copy_(0, rows, self.alphas(rows, touched.spaces))
            losses = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
            loss = losses.index_select(0, bags // lookup.shape[1])
            known = torch.stack([loss.nan_to_num(), (~loss.isnan()).to(loss.dtype)], 1)
            total, n = loss.new_zeros(len(rows), 2).index_add_(0, of_lookup, known).split(1, 1)
            self.last_loss.index_copy_(0, rows, torch.where(n > 0, total / n, self.last_loss.index_select(0, rows)))
        counted = self.counted.index_select(0, bags % lookup.shape[1])
        self.occurrences.index_add_(0, rows.index_select(0, of_lookup), counted)

    @torch.no_grad()
    def present_alphas(self) -> Tensor:
        """[V, N]: :meth:`alphas` of every id as things stand."""
        rows = torch.arange(len(self.occurrences), device=self.occurrences.device)
        return self.alphas(rows, torch.searchsorted(self.bounds, rows, right=True) - 1)

    def expected_widths(self) -> Tensor:
        """[V]: ``sum_n alpha_n d_n`` of every id as things stand; 0 in spaces that take no part."""
        alphas = self.present_alphas()
        return alphas @ alphas.new_tensor(self.candidates)
