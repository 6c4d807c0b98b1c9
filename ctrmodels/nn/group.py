"""Interactions of groups of fields: powers of weighted sums, which hold all interactions of an order at once.

Notation: B rows, F fields, D width of an embedding, G groups of one order p, all on one embedding; U distinct rows of
its table among the look-ups of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctrmodels.archspec import Group
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.norm import BatchNorm, follow
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
        return cast(Tensor, _Drawn.apply(self.logits, self.temperature))

    @torch.no_grad()
    def chosen(self) -> Tensor:
        """bool [F, G]."""
        return self.logits[..., 0] > self.logits[..., 1]


class _Drawn(torch.autograd.Function):
    """Whether the first of two noisy logits is the larger, with the gradient of a softmax: ``gumbel_softmax`` with
    ``hard=True``, in the few operations that two logits take."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        (inside, outside), noise = logits.unbind(-1), torch.empty_like(logits).exponential_().log_().unbind(-1)
        ahead = (inside - outside).add_(noise[1]).sub_(noise[0]).div_(temperature)
        chosen = (ahead > 0).float()
        ctx.save_for_backward(ahead.sigmoid_())
        ctx.temperature = temperature
        return chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        share, = ctx.saved_tensors
        of_in = gradients[0] * share * (1 - share) / ctx.temperature
        return torch.stack([of_in, -of_in], -1), None


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
        members: c; a search gives others.
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
        self.members = FixedMembers(groups, n_fields)
        counted = torch.ones(n_fields, len(groups)) if self.everyone else self.members()
        self.register_buffer("cells", counted.flatten().nonzero().squeeze(1), persistent=False)  # [K]
        bound = (3 / counted.sum(0).clamp(min=1)).sqrt() * _scale(self.order, dim)
        self.weights = nn.Parameter(
            (2 * torch.rand(len(self.cells)) - 1) * bound.expand_as(counted).flatten()[self.cells])

    @property
    def width(self) -> int:
        """Numbers that the groups give together."""
        return self.n_groups * (self.dim if self.order == 1 else 1)

    def forward(self, fields: Tensor | ByRow, members: Tensor | None = None) -> Tensor:
        """[B, F, D], or the rows of a training batch → float32 [B, G], or [B, G * D] at order 1.

        Args:
            fields: embeddings.
            members: [F, G] in place of the part's own.
        """
        rows = fields.rows if isinstance(fields, ByRow) else fields
        members = self.members() if members is None else members
        with full_precision(rows):
            if isinstance(fields, ByRow) or kernels(rows):
                part, = operands([self], [fields], [members])
                return written(rows.new_empty(part.rows, self.width), 0, [part])
            e = self.norm(fields.flatten(1)).view(fields.shape)
            inside, own, _ = self.cells_now(members)
            sums = e.transpose(1, 2) @ inside  # [B, D, G]
            if self.order == 1:
                return sums.transpose(1, 2).flatten(1)
            powers = sums.pow(self.order).sum(1)
            if not self.lambda_c:
                return powers
            own = inside if own is None else own
            return torch.addmm(powers, e.pow(self.order).sum(2), own.pow(self.order), alpha=-self.lambda_c)

    def cells_now(self, members: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[F, G] each: weights of the sum; what the compensation takes away, ``None`` if they are the same; and zeros
        where the gradient of the first goes nowhere, ``None`` if it is wanted everywhere."""
        weights = self._spread()
        inside, fixed = members * weights, None if members.requires_grad else members.contiguous()
        if not self.everyone:
            return inside, None, fixed
        return (inside - self.lambda_c * weights, None, None) if self.order == 1 else (inside, weights, fixed)

    def _spread(self) -> Tensor:
        """w [F, G], zero where no weight counts."""
        if len(self.cells) == self.n_fields * self.n_groups:
            return self.weights.view(self.n_fields, self.n_groups)
        flat = self.weights.new_zeros(self.n_fields * self.n_groups)
        return flat.scatter(0, self.cells, self.weights).view(self.n_fields, self.n_groups)

    def flops(self, members: Tensor) -> int:
        """Operations per row, of the ``members`` [F, G] alone."""
        inside, normalised = int(members.sum()), 2 * self.n_fields * self.dim
        if self.order == 1:
            return normalised + 2 * self.dim * inside
        powers = 2 * self.dim * inside + self.order * self.dim * self.n_groups
        if not self.lambda_c:
            return normalised + powers
        return normalised + powers + self.order * self.dim * self.n_fields + 2 * len(self.cells)


@dataclass(frozen=True)
class GroupOperand:
    """What the numbers of one part are computed from by the kernels.

    Attributes:
        vectors: normalised embeddings: [B * F, D], or [U, D] with ``lookup``.
        inside, own: [F, G] weights of the sum, and of what the compensation takes away, ``None`` if they are the same.
        members: [F, G] of zeros where nobody wants the gradient of ``inside``; ``None`` = it is wanted everywhere.
        lookup: where the fields' vectors are.
        rows: B.
        part: whose numbers they are.
    """

    vectors: Tensor
    inside: Tensor
    own: Tensor | None
    members: Tensor | None
    lookup: Lookup | None
    rows: int
    part: PowerSums


def operands(parts: Sequence[PowerSums], fields: Sequence[Tensor | ByRow], members: Sequence[Tensor]
             ) -> list[GroupOperand]:
    """What the kernels compute ``parts`` from, each of its own fields and ``members`` [F, G]; rows are normalised for
    all of them at once."""
    vectors = _normalised({part: own for part, own in zip(parts, fields, strict=True) if isinstance(own, ByRow)})
    made = []
    for part, own, inside in zip(parts, fields, members, strict=True):
        weights = part.cells_now(inside)
        if isinstance(own, ByRow):
            made.append(GroupOperand(vectors[part], *weights, own.lookup, own.lookup.shape[0], part))
        else:
            made.append(GroupOperand(part.norm(own.flatten(1)).view(-1, part.dim), *weights, None, len(own), part))
    return made


def _normalised(by_row: Mapping[PowerSums, ByRow]) -> dict[PowerSums, Tensor]:
    """[U, D] of each part, whose running statistics follow."""
    if not by_row:
        return {}
    parts, first = list(by_row), next(iter(by_row.values()))
    eps, = {part.norm.eps for part in parts}
    found = list(normalised([own.rows for own in by_row.values()], first.touched, eps))
    follow([part.norm for part in parts], [centre.flatten() for _, centre, _ in found],
           [variance.flatten() for _, _, variance in found], first.lookup.shape[0])
    return {part: out for part, (out, _, _) in zip(parts, found, strict=True)}


def written(flat: Tensor, column: int, operands: Sequence[GroupOperand]) -> Tensor:
    """``flat`` [B, W] with the numbers of ``operands``, one after the other, in its columns from ``column`` on."""
    tensors = [t for o in operands for t in (o.vectors.contiguous(), o.inside.contiguous(), o.own)]
    return cast(Tensor, _PowerSums.apply(flat, column, operands, *tensors))


def _threes(values: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
    return zip(values[::3], values[1::3], values[2::3], strict=True)


class _PowerSums(torch.autograd.Function):
    """:func:`written`, in place.

    Neither sums nor powers are written down, and the gradient of embeddings is computed only if somebody wants it.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, column: int, operands: Sequence[GroupOperand], *tensors: Tensor | None
                ) -> Tensor:
        ctx.kinds = []
        for operand, (vectors, inside, own) in zip(operands, _threes(tensors), strict=True):
            part, places = operand.part, None if operand.lookup is None else operand.lookup.places
            own_sums = compiled().power_sums(flat, column, vectors, places, inside, own, part.order, part.lambda_c)
            ctx.kinds.append((column, places, operand.members, own_sums, part.order, part.lambda_c))
            column += part.width
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(flat)
        return flat

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, found = gradients[0].contiguous(), []
        wanted = _threes(ctx.needs_input_grad[3:])
        for kind, (vectors, inside, own), wants in zip(ctx.kinds, _threes(ctx.saved_tensors), wanted, strict=True):
            column, places, members, own_sums, order, lambda_c = kind
            of_all = compiled().power_sums_backward(
                gradient, column, vectors, places, inside, own, members, own_sums, order, lambda_c, wants[0])
            found += [g if wants_it else None for g, wants_it in zip(of_all, wants, strict=True)]
        return gradient if ctx.needs_input_grad[0] else None, None, None, *found


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
        searched: the memberships of all parts, one after the other, while they are searched.
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
        self.searched: GumbelMembers | None = None

    def __iter__(self) -> Iterator[PowerSums]:
        return iter(cast(list[PowerSums], self.parts))

    @property
    def tables(self) -> set[str]:
        """Names of the embeddings that they read."""
        return {part.table for part in self}

    def written(self, flat: Tensor, column: int, fields: Mapping[str, Tensor | ByRow]) -> Tensor:
        """``flat`` [B, W] with the numbers of all parts in its columns from ``column`` on, by the compiled kernels."""
        with full_precision(flat):
            parts = list(self)
            return written(flat, column, operands(parts, [fields[part.table] for part in parts], self.members()))

    def forward(self, fields: Mapping[str, Tensor | ByRow]) -> list[Tensor]:
        """[B, F, D] of every embedding by name, or its rows → [B, width of the part] per part."""
        return [part(fields[part.table], members) for part, members in zip(self, self.members(), strict=True)]

    def members(self) -> list[Tensor]:
        """[F, G] of every part; drawn for all of them at once."""
        if self.searched is None:
            return [part.members() for part in self]
        return list(self.searched().split([part.n_groups for part in self], dim=1))

    def flops(self) -> int:
        """Operations per row."""
        return sum(part.flops(members) for part, members in zip(self, self.members(), strict=True))

    def relax(self, temperature: float) -> GumbelMembers:
        """Put memberships that a search can learn in the place of the fixed ones; all fields' weights have to count."""
        n_fields, = {part.n_fields for part in self}
        self.searched = GumbelMembers(n_fields, sum(part.n_groups for part in self), temperature)
        return self.searched


@contextmanager
def drawn(memberships: GumbelMembers) -> Iterator[None]:
    """Inside, memberships are drawn."""
    memberships.drawn = True
    try:
        yield
    finally:
        memberships.drawn = False
