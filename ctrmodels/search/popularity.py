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

from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import INIT_SD, projection
from ctrmodels.nn.rows import RowEmbedding, RowNorm, Touched
from ctrmodels.nn.table import Lookup, Table

BUCKETS = 32  # of int32 counts, by powers of two
POPULARITY_WIDTH = 32


def bucket(occurrences: Tensor) -> Tensor:
    """int64: floor(log2(1 + n)) of counts n, so that 0 has a bucket of its own and none is beyond ``BUCKETS``."""
    return torch.log2(1.0 + occurrences.double()).long().clamp_(max=BUCKETS - 1)


class PopularityController(nn.Module):
    """From an id's popularity and context to what each candidate width weighs in its embedding.

    ``softmax(W_2 tanh(LN(W_p LN(E[bucket]) + W_c [alpha; loss] + b)) + c)``. The published code normalises over the
    batch where this normalises over a row's own values: an id's width does not depend on whom it shares a batch with,
    and a single id can be asked for. Everything that depends on the bucket alone is computed per bucket.

    Args:
        n_candidates: N.
        hidden: width of the layer between.
        context: whether the id's last alpha and last loss are read; without them ids of one bucket have one alpha.
    """

    def __init__(self, n_candidates: int, hidden: int, context: bool) -> None:
        super().__init__()
        self.popularity = nn.Sequential(
            nn.Embedding(BUCKETS, POPULARITY_WIDTH), nn.LayerNorm(POPULARITY_WIDTH), nn.Linear(POPULARITY_WIDTH, hidden))
        self.context = nn.Linear(n_candidates + 1, hidden, bias=False) if context else None
        self.decide = nn.Sequential(nn.LayerNorm(hidden), nn.Tanh(), nn.Linear(hidden, n_candidates), nn.Softmax(1))

    def forward(self, occurrences: Tensor, last_alpha: Tensor, last_loss: Tensor) -> Tensor:
        """int [U], [U, N], [U, 1] → [U, N], rows sum to 1."""
        place = bucket(occurrences)
        of_bucket = self.popularity(torch.arange(BUCKETS, device=place.device))
        if self.context is None:
            return cast(Tensor, self.decide(of_bucket).index_select(0, place))
        seen = self.context(torch.cat([last_alpha, last_loss], 1))
        return cast(Tensor, self.decide(of_bucket.index_select(0, place) + seen))


class PopularityMixture(RowEmbedding):
    """Every id in all candidate widths at once, mixed by what a controller makes of its popularity so far.

    Candidate n of an id is brought to the common width by a linear map per id space, normalised per id space, candidate
    and dimension, and squashed: ``e = sum_n alpha_n tanh(BN(W_n e_n))``, where alpha comes from the
    :class:`PopularityController` of the id's side. The maps have no bias, which the normalisation would take away.

    "AutoEmb: Automated Embedding Dimensionality Search in Streaming Recommendations", ICDM 2021; reconstructed from
    descriptions of the method, which have a user and an item instead of id spaces with sides.

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
        last_alpha: [V, N], the id's alpha when it was last observed; at first one-hot on the smallest width.
        last_loss: [V, 1], mean loss of the rows with the id when it was last observed; at first 1.

    Raises:
        ValueError: no id space takes part.
    """

    occurrences: Tensor
    last_alpha: Tensor
    last_loss: Tensor
    side_of: Tensor
    counted: Tensor

    def __init__(self, schema: Schema, candidates: Sequence[int], dim: int, min_vocab: int = 100, hidden: int = 64,
                 context: bool = True) -> None:
        super().__init__(schema, dim)
        spaces, n = schema.id_spaces, len(candidates)
        self.candidates = tuple(candidates)
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
        self.register_buffer("counted", torch.tensor(counted, dtype=torch.int32), persistent=False)
        self.register_buffer("occurrences", torch.zeros(schema.total_vocab, dtype=torch.int32))
        self.register_buffer("last_alpha", torch.zeros(schema.total_vocab, n))
        self.register_buffer("last_loss", torch.ones(schema.total_vocab, 1))
        self.forget()

    def forget(self) -> None:
        """Nothing has been observed: a stream begins."""
        self.occurrences.zero_()
        self.last_alpha.zero_()
        self.last_alpha[:, int(np.argmin(self.candidates))] = 1.0
        self.last_loss.fill_(1.0)

    @contextmanager
    def deciding(self, active: bool) -> Iterator[None]:
        """Whether what happens inside is for the controllers to learn from, or for the weights."""
        self.controllers.requires_grad_(active)
        yield
        self.controllers.requires_grad_(True)

    def alphas(self, rows: Tensor, spaces: Tensor) -> Tensor:
        """[U, N]: what each candidate weighs for the ids ``rows`` int64 [U] of ``spaces`` int64 [U]; 0 in idle spaces."""
        found = self.last_alpha.new_zeros(len(rows), len(self.candidates))
        sides = self.side_of.index_select(0, spaces)
        for side, controller in enumerate(self.controllers):
            place = (sides == side).nonzero().squeeze(1)
            mine = rows.index_select(0, place)
            alpha = controller(*(b.index_select(0, mine) for b in (self.occurrences, self.last_alpha, self.last_loss)))
            found = found.index_copy(0, place, alpha)
        return found

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        values = touched.of(self.table)
        cuts = touched.cuts.tolist()
        wide = values.new_zeros(len(values), len(self.candidates) * self.dim)
        parts = []
        for s, (begin, end) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            if self.taking[s]:
                narrow = values[begin:end, :sum(self.candidates)].split(self.candidates, 1)
                parts.append(torch.cat([e @ p[s] for e, p in zip(narrow, self.projections, strict=True)], 1))
            else:
                parts.append(wide[begin:end])
        wide = torch.tanh(self.norm(torch.cat(parts), touched)).view(len(values), len(self.candidates), self.dim)
        alpha = self.alphas(touched.rows, touched.spaces)
        mixed = torch.bmm(alpha.unsqueeze(1), wide).squeeze(1)
        takes = (self.side_of >= 0).index_select(0, touched.spaces).unsqueeze(1)
        return torch.where(takes, mixed, values[:, :self.dim])

    @torch.no_grad()
    def observe(self, lookup: Lookup, losses: Tensor) -> None:
        """Keep what a batch showed: its ids occurred, and this were their alphas and losses.

        Args:
            lookup: of the batch.
            losses: [B] of its rows, NaN where the label is unknown.
        """
        touched = self.touched(lookup)
        rows, bags = touched.rows, touched.segments.bags
        of_lookup = torch.repeat_interleave(touched.counts.long(), output_size=touched.n)
        self.last_alpha.index_copy_(0, rows, self.alphas(rows, touched.spaces))
        loss = losses.index_select(0, bags // lookup.shape[1])
        known = ~loss.isnan()
        sums = loss.new_zeros(len(rows), 2).index_add_(
            0, of_lookup, torch.stack([loss.nan_to_num(), known.to(loss.dtype)], 1))
        seen = sums[:, 1] > 0
        self.last_loss.index_copy_(0, rows[seen], (sums[seen, :1] / sums[seen, 1:]))
        self.occurrences.index_add_(0, rows.index_select(0, of_lookup), self.counted.index_select(0, bags % lookup.shape[1]))

    @torch.no_grad()
    def expected_widths(self) -> Tensor:
        """[V]: ``sum_n alpha_n d_n`` of every id as things stand; D in spaces that take no part."""
        rows = torch.arange(len(self.occurrences), device=self.occurrences.device)
        spaces = torch.searchsorted(self.bounds, rows, right=True) - 1
        widths = self.alphas(rows, spaces) @ torch.tensor(self.candidates, dtype=torch.float32, device=rows.device)
        return torch.where(self.side_of.index_select(0, spaces) >= 0, widths, float(self.dim))
