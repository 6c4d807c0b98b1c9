"""An embedding whose width follows how often an id has been seen so far.

Notation: B rows of a batch, F fields, U distinct rows of the table among its look-ups, V ids of all id spaces, S id
spaces, N candidate widths d_1 .. d_N, D common width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.data.schema import Schema
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.embedding import INIT_SD, projection
from ctrmodels.nn.rows import RowEmbedding, RowNorm, Touched
from ctrmodels.nn.table import Lookup, Table

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

    def forward(self, occurrences: Tensor, *seen: Tensor) -> Tensor:
        """int [U] and, if the context is read, [U, N] and [U, 1] → [U, N], rows sum to 1."""
        place = bucket(occurrences)
        of_bucket = self.popularity(torch.arange(BUCKETS, device=place.device))
        if self.context is None:
            return cast(Tensor, self.decide(of_bucket).index_select(0, place))
        return cast(Tensor, self.decide(of_bucket.index_select(0, place) + self.context(torch.cat(seen, 1))))


def squashed_mixture(candidates: Tensor, weights: Tensor) -> Tensor:
    """``sum_n w_n tanh(e_n)`` of N candidates side by side: [U, N * D] and [U, N] → [U, D]."""
    if kernels(candidates, weights):
        return cast(Tensor, _SquashedMixture.apply(candidates.contiguous(), weights.contiguous()))
    squashed = torch.tanh(candidates).unflatten(1, (weights.shape[1], -1))  # [U, N, D]
    return (squashed * weights.unsqueeze(2)).sum(1)


class _SquashedMixture(torch.autograd.Function):
    """In one pass over the candidates, and one back."""

    @staticmethod
    def forward(ctx: Any, candidates: Tensor, weights: Tensor) -> Tensor:
        mixed, squashed = compiled().squash(candidates, weights)
        ctx.save_for_backward(squashed, weights)
        return cast(Tensor, mixed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], compiled().squash_backward(gradients[0].contiguous(), *ctx.saved_tensors))


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
        """What each candidate weighs for the ids ``rows`` [U] of ``spaces`` [U]: [U, N], 0 where no part is taken."""
        found = self.last_alpha.new_zeros(len(rows), len(self.candidates))
        sides = self.side_of.index_select(0, spaces)
        read = (self.occurrences, self.last_alpha, self.last_loss) if self.context else (self.occurrences,)
        for side, controller in enumerate(self.controllers):
            place = (sides == side).nonzero().squeeze(1)
            mine = rows.index_select(0, place)
            found = found.index_copy(0, place, controller(*(b.index_select(0, mine) for b in read)))
        return found

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        values, n = touched.of(self.table), len(self.candidates)
        # The candidates lie side by side, and so do their maps: one product per id space.
        maps = torch.cat([F.pad(p, (i * self.dim, (n - 1 - i) * self.dim)) for i, p in enumerate(self.projections)], 1)
        side_by_side = values if len(maps[0]) == values.shape[1] else values[:, :len(maps[0])]
        wide = touched.times(side_by_side, maps)
        wide = self.norm(wide, touched, torch.ones_like(self.norm.mean))
        mixed = squashed_mixture(wide, self.alphas(touched.rows, touched.spaces))
        if all(self.taking):
            return mixed
        takes = (self.side_of >= 0).index_select(0, touched.spaces).unsqueeze(1)
        return torch.where(takes, mixed, values[:, :self.dim])

    @torch.no_grad()
    def observe(self, lookup: Lookup, losses: Tensor) -> None:
        """Keep what a batch showed: that its ids occurred, their alphas and their losses.

        Args:
            lookup: of the batch.
            losses: [B] of its rows, NaN where the label is unknown.
        """
        touched = self.touched(lookup)
        rows, bags = touched.rows, touched.segments.bags
        if not self.context and self.all_counted:
            self.occurrences.index_add_(0, rows, touched.counts.int())
            return
        of_lookup = torch.repeat_interleave(touched.counts.long(), output_size=touched.n)
        if self.context:
            self.last_alpha.index_copy_(0, rows, self.alphas(rows, touched.spaces))
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
