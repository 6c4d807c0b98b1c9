"""The operations that make one number of the fields of an interaction.

Notation: B rows, F fields, D width of an embedding, M interactions of one operation, order p and embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations as choose
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from ctrmodels.native import compiled
from ctrmodels.nn.rows import ByRow
from ctrmodels.nn.table import Lookup
from ctrmodels.nn.towers import full_precision

CHUNK = 1 << 21  # values of a product with all fields that are there at once, 8 MiB


def common_prefixes(combinations: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], int]]:
    """Every combination as all of its fields but one, and that one, such that many have the first part in common."""
    frequent = Counter(part for c in combinations for part in choose(c, len(c) - 1))
    found = []
    for c in combinations:
        part = max(choose(c, len(c) - 1), key=lambda p: frequent[p])
        found.append((part, next(f for f in c if f not in part)))
    return found


def arranged(combinations: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Combinations as the compiled kernels like them: what each shares with others in front, and side by side.

    What neighbours have in common but for their last field is computed once. Pairs stay as they are.

    Returns:
        int64 [p, M] fields, and int64 [M], where among ``combinations`` each of them stands.
    """
    found = [(c, place) for place, c in enumerate(combinations)]
    if len(combinations[0]) > 2:
        found = sorted(((*part, last), place) for place, (part, last) in enumerate(common_prefixes(combinations)))
    return torch.tensor([c for c, _ in found]).T.contiguous(), torch.tensor([place for _, place in found])


@dataclass(frozen=True)
class Operand:
    """What the compiled kernels compute the interactions of one kind from.

    Attributes:
        vectors: [B, N, W]; with ``lookup`` [U, N / F, W], what each row that is looked up has of the N.
        slots: int64 [p, M] places among the N.
        weights: [M, W] or [M, 1] of the products of vectors, whose sums over W are wanted.
        lookup: where the vectors of a row of the batch are.
    """

    vectors: Tensor
    slots: Tensor
    weights: Tensor | None = None
    lookup: Lookup | None = None

    @classmethod
    def of(cls, fields: Tensor | ByRow, slots: Tensor, weights: Tensor | None = None) -> Operand:
        """Of the fields' own vectors."""
        if isinstance(fields, ByRow):
            return cls(fields.rows.unsqueeze(1), slots, weights, fields.lookup)
        return cls(fields, slots, weights)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.vectors) if self.lookup is None else self.lookup.shape[0]

    @property
    def places(self) -> Tensor | None:
        """int32 [B, F]."""
        return None if self.lookup is None else self.lookup.places.view(self.lookup.shape)

    @property
    def begins(self) -> Tensor | None:
        """int32 [U], where among the look-ups, grouped by row, each row's begin."""
        return None if self.lookup is None else self.lookup.segments.begins


class InnerProducts(nn.Module):
    """``sum_d prod_s e_sd`` of chosen combinations of fields, all of one order p.

    By torch, the products of p - 1 fields, of which combinations have many in common, times all fields as one batched
    matrix product: of pairs the Gram matrix, so that 741 pairs of 39 fields cost one product instead of 741 gathered
    copies. :class:`Products` has a compiled form of it.

    Args:
        combinations: M tuples of p fields, each once.
        n_fields: F.
    """

    slots: Tensor
    moved: Tensor
    prefixes: Tensor
    cells: Tensor

    def __init__(self, combinations: Sequence[tuple[int, ...]], n_fields: int) -> None:
        super().__init__()
        order = len(combinations[0])
        parts = common_prefixes(combinations) if order > 2 else [(c[:1], c[1]) for c in combinations]
        heads = sorted({head for head, _ in parts}) if order > 2 else [(f,) for f in range(n_fields)]
        place = {head: i for i, head in enumerate(heads)}
        slots, moved = arranged(combinations)
        self.register_buffer("slots", slots, persistent=False)  # [p, M]
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("prefixes", torch.tensor(heads).T.contiguous(), persistent=False)  # [p - 1, U]
        self.register_buffer("cells", torch.tensor([place[head] * n_fields + last for head, last in parts]),
                             persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        if len(self.prefixes) > 1 and not torch.compiler.is_exporting():
            return cast(Tensor, _PrefixProducts.apply(fields, self.prefixes, self.cells))
        # Of pairs; a graph for export holds no loop over an unknown number of rows either.
        left = _product(fields, self.prefixes) if len(self.prefixes) > 1 else fields
        return torch.bmm(left, fields.transpose(1, 2)).flatten(1).index_select(1, self.cells)

    def operand(self, fields: Tensor | ByRow) -> Operand:
        """What the compiled form takes; its columns are the columns ``moved`` of ``forward``."""
        return Operand.of(fields, self.slots)

    def flops(self, dim: int) -> int:
        """Operations per row, of the chosen ones alone."""
        return 2 * dim * len(self.cells) + dim * (len(self.prefixes) - 1) * self.prefixes.shape[1]


def _product(fields: Tensor, slots: Tensor) -> Tensor:
    """``prod_s e_s`` of the fields in every column of ``slots`` [p, U]: [B, F, D] → [B, U, D]."""
    product = fields.index_select(1, slots[0])
    for others in slots[1:]:
        product = product * fields.index_select(1, others)
    return product


def _spread(into: Tensor, fields: Tensor, slots: Tensor, gradient: Tensor) -> None:
    """Add to ``into`` [B, F, D] the gradient of the fields, from that of :func:`_product` [B, U, D]."""
    gathered = [fields.index_select(1, slot) for slot in slots]
    for s, slot in enumerate(slots):
        of_slot = gradient
        for other in (*gathered[:s], *gathered[s + 1:]):
            of_slot = of_slot * other
        into.index_add_(1, slot, of_slot)


def _chunks(width: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of rows of which ``width`` values each are at most ``CHUNK``."""
    return zip(*(t.split(max(1, CHUNK // width)) for t in tensors), strict=True)


class _PrefixProducts(torch.autograd.Function):
    """Products of prefixes with all fields, of some rows at a time and computed again in the backward pass.

    They are several times what is chosen of them: of all triples of 39 fields and 4096 rows half a gigabyte.
    """

    @staticmethod
    def forward(ctx: Any, fields: Tensor, prefixes: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(fields, prefixes, cells)
        out = fields.new_empty(len(fields), len(cells))
        with full_precision(fields):
            for x, found in _chunks(prefixes.shape[1] * fields.shape[1], fields, out):
                gram = torch.bmm(_product(x, prefixes), x.transpose(1, 2))  # [b, U, F]
                found.copy_(gram.flatten(1).index_select(1, cells))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        fields, prefixes, cells = ctx.saved_tensors
        u, n = prefixes.shape[1], fields.shape[1]
        # Where in the chosen ones each cell's gradient stands; behind them stands the zero of all other cells.
        source = torch.full((u * n,), len(cells), device=cells.device).index_copy_(
            0, cells, torch.arange(len(cells), device=cells.device))
        of_fields = torch.empty_like(fields)
        for x, g, into in _chunks(u * n, fields, gradients[0], of_fields):
            of_gram = torch.cat([g, g.new_zeros(len(g), 1)], 1).index_select(1, source).view(-1, u, n)
            into.copy_(torch.bmm(of_gram.transpose(1, 2), _product(x, prefixes)))
            _spread(into, x, prefixes, torch.bmm(of_gram, x))
        return of_fields, None, None


class _Arranged(torch.autograd.Function):
    """Rows in another order, of which each is taken once: the gradient takes them back, where ``index_add`` adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.order = order
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.order.argsort()), None


class ScalarKernels(InnerProducts):
    """Inner products times a learned number each."""

    def __init__(self, combinations: Sequence[tuple[int, ...]], n_fields: int) -> None:
        super().__init__(combinations, n_fields)
        self.kernels = nn.Parameter(torch.ones(len(combinations)))

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        return super().forward(fields) * self.kernels

    def operand(self, fields: Tensor | ByRow) -> Operand:
        """See :class:`InnerProducts`."""
        return Operand.of(fields, self.slots, _Arranged.apply(self.kernels, self.moved).unsqueeze(1))


class VectorKernels(nn.Module):
    """``sum_d k_md prod_s e_sd`` of chosen combinations of fields, with a learned vector k_m each."""

    chosen: Tensor
    slots: Tensor
    moved: Tensor

    def __init__(self, combinations: Sequence[tuple[int, ...]], dim: int) -> None:
        super().__init__()
        slots, moved = arranged(combinations)
        self.register_buffer("chosen", torch.tensor(combinations).T.contiguous(), persistent=False)  # [p, M]
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self.kernels = nn.Parameter(torch.ones(len(combinations), dim))

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        if torch.compiler.is_exporting():
            return (_product(fields, self.chosen) * self.kernels).sum(2)
        return cast(Tensor, _WeightedProducts.apply(fields, self.kernels, self.chosen))

    def operand(self, fields: Tensor | ByRow) -> Operand:
        """See :class:`InnerProducts`."""
        return Operand.of(fields, self.slots, _Arranged.apply(self.kernels, self.moved))

    def flops(self, dim: int) -> int:
        """Operations per row."""
        return self.slots.numel() * dim + dim * self.slots.shape[1]


class _WeightedProducts(torch.autograd.Function):
    """Weighted products of some rows at a time, computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, fields: Tensor, weights: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(fields, weights, slots)
        out = fields.new_empty(len(fields), len(weights))
        for x, found in _chunks(weights.numel(), fields, out):
            found.copy_((_product(x, slots) * weights).sum(2))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        fields, weights, slots = ctx.saved_tensors
        of_fields, of_weights = torch.zeros_like(fields), torch.zeros_like(weights)
        for x, g, into in _chunks(weights.numel(), fields, gradients[0], of_fields):
            of_weights += (_product(x, slots) * g.unsqueeze(2)).sum(0)
            _spread(into, x, slots, weights * g.unsqueeze(2))
        return of_fields, of_weights, None


class _Projection(torch.autograd.Function):
    """Inner products of every vector with a few others; a matrix product of this shape is mostly waiting."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, onto: Tensor) -> Tensor:
        """[N, D] and [p, D] → [N, p]."""
        x, onto = x.contiguous(), onto.contiguous()
        ctx.save_for_backward(x, onto)
        return cast(Tensor, compiled().project(x, onto))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], compiled().project_backward(gradients[0].contiguous(), *ctx.saved_tensors))


class _LookedUp(torch.autograd.Function):
    """Short vectors of a batch's rows, side by side: there are so few values that to write them costs nothing."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lookup: Lookup) -> Tensor:
        """[U, p] → [B * F, p]."""
        ctx.lookup = lookup
        return cast(Tensor, compiled().gather(rows, lookup.places))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        segments = ctx.lookup.segments
        return embedding_bag(segments.order, gradients[0].contiguous(), segments.begins, mode="sum"), None


class OuterProducts(nn.Module):
    """``prod_s <e_s, u_s>`` of chosen combinations of fields: the outer product under a kernel of rank one.

    The learned vectors u_1 .. u_p belong to places in the combination, and all combinations share them.
    """

    slots: Tensor
    moved: Tensor

    def __init__(self, combinations: Sequence[tuple[int, ...]], dim: int, n_fields: int) -> None:
        super().__init__()
        self.n_fields = n_fields
        self.register_buffer("slots", torch.tensor(combinations).T.contiguous(), persistent=False)  # [p, M]
        self.register_buffer("moved", torch.arange(len(combinations)), persistent=False)  # a vector belongs to a place
        self.vectors = nn.Parameter(torch.randn(dim, len(self.slots)) * dim**-0.5)

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        projected = fields @ self.vectors  # [B, F, p]
        product = projected[:, :, 0].index_select(1, self.slots[0])
        for place in range(1, len(self.slots)):
            product = product * projected[:, :, place].index_select(1, self.slots[place])
        return product

    def operand(self, fields: Tensor | ByRow) -> Operand:
        """See :class:`InnerProducts`; here of numbers, those of a field for all places side by side."""
        places = torch.arange(len(self.slots), device=self.slots.device).unsqueeze(1)
        slots = self.slots * len(self.slots) + places
        if isinstance(fields, ByRow):
            projected = _Projection.apply(fields.rows, self.vectors.T)  # [U, p]
            looked_up = cast(Tensor, _LookedUp.apply(projected, fields.lookup))
            return Operand(looked_up.view(fields.lookup.shape[0], -1, 1), slots)
        projected = cast(Tensor, _Projection.apply(fields.flatten(0, 1), self.vectors.T))  # [B * F, p]
        return Operand(projected.view(len(fields), -1, 1), slots)

    def flops(self, dim: int) -> int:
        """Operations per row: every field is projected for every place."""
        return 2 * self.n_fields * self.vectors.numel() + self.slots.numel()
