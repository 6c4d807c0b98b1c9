"""Interactions of groups of fields: powers of weighted sums, which hold all interactions of an order at once.

Notation: B rows, F fields, D width of an embedding, G groups of one order p, all on one embedding; U distinct rows of
its table among the look-ups of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ctrmodels.archspec import Group
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.norm import BatchNorm
from ctrmodels.nn.rows import ByRow, normalised
from ctrmodels.nn.table import Lookup
from ctrmodels.nn.towers import full_precision

LOGIT_INIT = 1e-3  # published: memberships start undecided


class FixedMembers(nn.Module):
    """Memberships that are decided.

    Args:
        groups: G of them.
        n_fields: F.
    """

    members: Tensor

    def __init__(self, groups: Sequence[Group], n_fields: int) -> None:
        super().__init__()
        members = torch.zeros(n_fields, len(groups))
        for place, group in enumerate(groups):
            members[list(group.fields), place] = 1.0
        self.register_buffer("members", members, persistent=False)

    def forward(self) -> Tensor:
        """[F, G] of zeros and ones."""
        return self.members


class GumbelMembers(nn.Module):
    """Memberships under search: per field and group a choice between in and out that has a gradient.

    Drawn, the choice is the larger of ``softmax((logits + Gumbel noise) / temperature)``, and its gradient that of the
    softmax (straight-through). Otherwise it is the larger logit, and a constant.

    Args:
        n_fields: F.
        n_groups: G.
        temperature: of the softmax.

    Attributes:
        logits: [F, G, 2], of in and out.
        drawn: whether choices carry noise and a gradient now.
    """

    def __init__(self, n_fields: int, n_groups: int, temperature: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.empty(n_fields, n_groups, 2).uniform_(-LOGIT_INIT, LOGIT_INIT))
        self.temperature, self.drawn = temperature, False

    def forward(self) -> Tensor:
        """[F, G] of zeros and ones."""
        if not self.drawn:
            return self.chosen().float()
        return functional.gumbel_softmax(self.logits, self.temperature, hard=True)[..., 0]

    @torch.no_grad()
    def chosen(self) -> Tensor:
        """bool [F, G]."""
        return self.logits[..., 0] > self.logits[..., 1]


class PowerSums(nn.Module):
    """What the groups of one order p make of one embedding.

    With memberships c and trainable weights w, and e the embedding of every field after a batch normalisation without
    scale and shift::

        g_j = sum_f c_fj w_fj e_f                                            [D]
        p = 1:  I_j = g_j                                                    [D]
        p > 1:  I_j = sum_d (g_jd^p - lambda_c sum_f (c_fj w_fj e_fd)^p)     one number

    The power holds every product of p members, and the compensation takes those of a single field away. So does the
    paper's formula: "AutoGroup: Automatic Feature Grouping for Modelling Explicit High-Order Feature Interactions in
    CTR Prediction", SIGIR 2020. The published code (Huawei's vega) leaves c out of the compensation, so that fields
    outside the group are taken away as well, and has one at order 1, too: ``compensation="code"``.

    Powers of embeddings that are not normalised overflow: whoever trains them finds the scale that grows fastest.

    Args:
        groups: G of them, of one order, embedding and compensation.
        n_fields: F.
        dim: D.

    Attributes:
        members: c; a search puts :class:`GumbelMembers` in its place.
        weights: [K] the values of w that count: those of members; all of them in the code's form.
    """

    cells: Tensor

    def __init__(self, groups: Sequence[Group], n_fields: int, dim: int) -> None:
        super().__init__()
        first = groups[0]
        self.order, self.table, self.dim, self.n_groups = first.order, first.table, dim, len(groups)
        self.lambda_c, self.everyone = first.lambda_c, first.compensation == "code"
        self.n_fields = n_fields
        self.norm = BatchNorm(n_fields * dim)
        self.members: FixedMembers | GumbelMembers = FixedMembers(groups, n_fields)
        counted = torch.ones(n_fields, len(groups)) if self.everyone else self.members()
        self.register_buffer("cells", counted.flatten().nonzero().squeeze(1), persistent=False)  # [K]
        bound = (3 / counted.sum(0).clamp(min=1)).sqrt() * _scale(self.order, dim)
        self.weights = nn.Parameter(
            (2 * torch.rand(len(self.cells)) - 1) * bound.expand_as(counted).flatten()[self.cells])

    @property
    def width(self) -> int:
        """Numbers that the groups give together."""
        return self.n_groups * (self.dim if self.order == 1 else 1)

    def forward(self, fields: Tensor | ByRow) -> Tensor:
        """[B, F, D], or the rows of a training batch → float32 [B, G], or [B, G * D] at order 1."""
        if isinstance(fields, ByRow):
            return self._of_rows(fields)
        with full_precision(fields):
            e = self.norm(fields.flatten(1)).view(fields.shape)
            inside, own = self._cells()
            if kernels(e):
                return cast(Tensor, _PowerSums.apply(e.flatten(0, 1), inside, own, None, self.order, self.lambda_c))
            sums = e.transpose(1, 2) @ inside  # [B, D, G]
            if self.order == 1:
                return sums.transpose(1, 2).flatten(1)
            powers = sums.pow(self.order).sum(1)
            if not self.lambda_c:
                return powers
            own = inside if own is None else own
            return torch.addmm(powers, e.pow(self.order).sum(2), own.pow(self.order), alpha=-self.lambda_c)

    def _of_rows(self, looked_up: ByRow) -> Tensor:
        """[B, width], by the rows' normalised values: there are fewer of them than look-ups."""
        lookup = looked_up.lookup
        with full_precision(looked_up.rows):
            e, centre, variance = normalised(looked_up.rows, looked_up.touched, self.norm.eps)
            self.norm.follow(centre.flatten(), variance.flatten(), lookup.shape[0])
            return cast(Tensor, _PowerSums.apply(e, *self._cells(), lookup, self.order, self.lambda_c))

    def _cells(self) -> tuple[Tensor, Tensor | None]:
        """[F, G] weights of the sum, and of what the compensation takes away, ``None`` if they are the same."""
        members, weights = self.members(), self._spread()
        inside = members * weights
        if not self.everyone:
            return inside, None
        return (inside - self.lambda_c * weights, None) if self.order == 1 else (inside, weights)

    def _spread(self) -> Tensor:
        """w [F, G], zero where no weight counts."""
        flat = self.weights.new_zeros(self.n_fields * self.n_groups)
        return flat.scatter(0, self.cells, self.weights).view(self.n_fields, self.n_groups)

    def flops(self) -> int:
        """Operations per row, of the members alone."""
        members, normalised = int(self.members().sum()), 2 * self.n_fields * self.dim
        if self.order == 1:
            return normalised + 2 * self.dim * members
        powers = 2 * self.dim * members + self.order * self.dim * self.n_groups
        if not self.lambda_c:
            return normalised + powers
        return normalised + powers + self.order * self.dim * self.n_fields + 2 * len(self.cells)


class _PowerSums(torch.autograd.Function):
    """Of normalised vectors [N, D], field after field within a row or, with ``lookup``, its rows: :class:`PowerSums`.

    Neither sums nor powers are written down, and only those gradients are computed that somebody wants.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, inside: Tensor, own: Tensor | None, lookup: Lookup | None, order: int,
                lambda_c: float) -> Tensor:
        vectors, inside = vectors.contiguous(), inside.contiguous()
        ctx.save_for_backward(vectors, inside, own)
        ctx.lookup, ctx.order, ctx.lambda_c = lookup, order, lambda_c
        return cast(Tensor, compiled().power_sums(
            vectors, None if lookup is None else lookup.places, inside, own, order, lambda_c))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        vectors, inside, own = ctx.saved_tensors
        of_rows = (None, None, None)
        if ctx.lookup is not None:
            segments = ctx.lookup.segments
            of_rows = (ctx.lookup.places, segments.order, segments.begins)
        wanted = ctx.needs_input_grad
        of_vectors, of_inside, of_own = compiled().power_sums_backward(
            gradients[0].contiguous(), vectors, *of_rows, inside, own, ctx.order, ctx.lambda_c, wanted[0])
        return (of_vectors if wanted[0] else None, of_inside if wanted[1] else None, of_own if wanted[2] else None,
                None, None, None)


def _scale(order: int, dim: int) -> float:
    """Standard deviation of g at which ``sum_d g_d^p`` of normal g has unit variance; 1 at order 1.

    With more, what a group gives at first drowns the other features: weights learn to ignore it, and memberships to
    leave it, before it has learnt anything.
    """
    if order == 1:
        return 1.0
    mean = prod(range(1, order, 2)) if order % 2 == 0 else 0  # E z^p of a standard normal z
    variance = prod(range(1, 2 * order, 2)) - mean**2
    return float((dim * variance) ** (-1 / (2 * order)))


class Groups(nn.Module):
    """All groups of an ArchSpec, each on the embedding it names.

    Args:
        groups: of any orders.
        n_fields: F.
        dims: width of every embedding by name.

    Attributes:
        parts: one per order, embedding and compensation.
        width: numbers that they give together; 0 without groups.
    """

    def __init__(self, groups: Sequence[Group], n_fields: int, dims: Mapping[str, int]) -> None:
        super().__init__()
        kinds: dict[tuple[object, ...], list[Group]] = {}
        for group in groups:
            if group.order < 1 or len(set(group.fields)) < len(group.fields) or not group.fields:
                raise ValueError(f"a group of order {group.order} of the fields {group.fields}: it takes an order of 1 "
                                 "or more, and fields that differ")
            kinds.setdefault((group.order, group.table, group.lambda_c, group.compensation), []).append(group)
        self.parts = nn.ModuleList(PowerSums(kind, n_fields, dims[kind[0].table]) for kind in kinds.values())
        self.width = sum(part.width for part in self)

    def __iter__(self) -> Iterator[PowerSums]:
        return iter(cast(list[PowerSums], self.parts))

    @property
    def tables(self) -> set[str]:
        """Names of the embeddings that they read."""
        return {part.table for part in self}

    def forward(self, fields: Mapping[str, Tensor | ByRow]) -> list[Tensor]:
        """[B, F, D] of every embedding by name, or its rows → [B, width of the part] per part."""
        return [part(fields[part.table]) for part in self]

    def flops(self) -> int:
        """Operations per row."""
        return sum(part.flops() for part in self)

    def relax(self, temperature: float) -> list[GumbelMembers]:
        """Put memberships that a search can learn in the place of the fixed ones; all fields' weights have to count."""
        for part in self:
            part.members = GumbelMembers(part.n_fields, part.n_groups, temperature)
        return [cast(GumbelMembers, part.members) for part in self]


@contextmanager
def drawn(memberships: Sequence[GumbelMembers]) -> Iterator[None]:
    """Inside, memberships are drawn."""
    for m in memberships:
        m.drawn = True
    try:
        yield
    finally:
        for m in memberships:
            m.drawn = False
