"""Explicit interactions of fields: all of an ArchSpec, whatever their operation, order and embedding.

Notation: B rows, F fields, D width of an embedding, M interactions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctrmodels.archspec import Interaction
from ctrmodels.native import compiled, kernels
from ctrmodels.nn.operations import InnerProducts, Operand, OuterProducts, ScalarKernels, VectorKernels
from ctrmodels.nn.rows import ByRow
from ctrmodels.nn.towers import full_precision


class Products(nn.Module):
    """One number per interaction of an ArchSpec, of any operation and order, each on the embedding it names.

    Args:
        interactions: M of them, none a micronet.
        n_fields: F.
        dims: width of every embedding by name.
    """

    places: Tensor
    order: Tensor
    order_apart: Tensor

    def __init__(self, interactions: Sequence[Interaction], n_fields: int, dims: Mapping[str, int]) -> None:
        super().__init__()
        kinds: dict[tuple[str, str, int], list[int]] = {}
        for place, i in enumerate(interactions):
            if not 2 <= len(set(i.fields)) == len(i.fields):
                raise ValueError(f"an interaction of the fields {i.fields}: it takes two or more different ones")
            kinds.setdefault((i.table, i.op, i.order), []).append(place)
        for places in kinds.values():
            if len({interactions[p].fields for p in places}) < len(places):
                raise ValueError("an interaction is there twice")
        self.tables, self.dims = [table for table, _, _ in kinds], dims
        self.parts = nn.ModuleList()
        for (table, op, _), places in kinds.items():
            combinations = [interactions[p].fields for p in places]
            if op in ("inner", "scalar_kernel"):
                self.parts.append((InnerProducts if op == "inner" else ScalarKernels)(combinations, n_fields))
            elif op == "vector_kernel":
                self.parts.append(VectorKernels(combinations, dims[table]))
            elif op == "outer":
                self.parts.append(OuterProducts(combinations, dims[table], n_fields))
            else:
                raise ValueError(f"{op} does not give one number")
        # Of what the parts give, one after the other: by themselves, and by the compiled kernels.
        found = [torch.tensor(places) for places in kinds.values()]
        apart = torch.cat([torch.empty(0, dtype=torch.long), *found])
        places_ = torch.cat([apart[:0], *(p[cast(InnerProducts, part).moved]
                                          for p, part in zip(found, self.parts, strict=True))])
        self.register_buffer("order_apart", apart.argsort(), persistent=False)
        self.register_buffer("places", places_, persistent=False)
        self.register_buffer("order", places_.argsort(), persistent=False)
        self.in_order = bool((self.order.diff() == 1).all())

    def __len__(self) -> int:
        return len(self.order)

    def forward(self, fields: Mapping[str, Tensor | ByRow]) -> Tensor:
        """[B, F, D] of every embedding by name, or its rows → [B, M], in the order of the interactions."""
        if not len(self):
            some = next(iter(fields.values()))
            rows, values = (some.lookup.shape[0], some.rows) if isinstance(some, ByRow) else (some.shape[0], some)
            return values.new_zeros(rows, 0)
        if self.compiles(fields):
            operands = self._operands(fields)
            tensors = [t for o in operands for t in (o.vectors, o.weights)]
            found = cast(Tensor, _CompiledProducts.apply(operands, *tensors))
            return found if self.in_order else found.index_select(1, self.order)
        with full_precision(self.order):
            columns = torch.cat([part(fields[table]) for table, part in zip(self.tables, self.parts, strict=True)], 1)
        return columns if len(self.parts) == 1 else columns.index_select(1, self.order_apart)

    def compiles(self, fields: Mapping[str, Tensor | ByRow]) -> bool:
        """Whether compiled kernels read these."""
        read = (fields[table] for table in self.tables)
        return kernels(*(e.rows if isinstance(e, ByRow) else e for e in read)) is not None

    def gated(self, fields: Mapping[str, Tensor | ByRow], gates: Tensor, epsilon: Tensor
              ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of all interactions, normalised over the batch, by their gates; by the compiled kernels.

        Args:
            fields: [B, F, D] of every embedding by name, or its rows.
            gates: [M].
            epsilon: [M], beside the variances.

        Returns:
            [B], and means and variances [M] of the interactions.
        """
        if not self.in_order:
            gates, epsilon = gates.index_select(0, self.places), epsilon.index_select(0, self.places)
        operands = self._operands(fields)
        sizes = [o.slots.shape[1] for o in operands]
        total, *moments = zip(*(_GatedProducts.apply(o, o.vectors, o.weights, g, e) for o, g, e in zip(
            operands, gates.split(sizes), epsilon.split(sizes), strict=True)), strict=True)
        centre, variance = (torch.cat(part) for part in moments)
        if not self.in_order:
            centre, variance = centre.index_select(0, self.order), variance.index_select(0, self.order)
        return reduce(torch.add, total), centre, variance

    def _operands(self, fields: Mapping[str, Tensor | ByRow]) -> list[Operand]:
        return [cast(InnerProducts, part).operand(fields[table])
                for table, part in zip(self.tables, self.parts, strict=True)]

    def flops(self) -> int:
        """Operations per row."""
        return sum(cast(InnerProducts, part).flops(self.dims[table])
                   for table, part in zip(self.tables, self.parts, strict=True))


class _CompiledProducts(torch.autograd.Function):
    """Products of several kinds beside each other, of which no more is ever written down than their sums."""

    @staticmethod
    def forward(ctx: Any, operands: Sequence[Operand], *tensors: Tensor | None) -> Tensor:
        """``tensors`` are the vectors and then the weights, or none, of every operand: → [B, M]."""
        vectors = [cast(Tensor, x).contiguous() for x in tensors[::2]]
        weights = [None if w is None else w.contiguous() for w in tensors[1::2]]
        out = vectors[0].new_empty(operands[0].rows, sum(o.slots.shape[1] for o in operands))
        column = 0
        for o, x, w in zip(operands, vectors, weights, strict=True):
            compiled().products(x, o.places, w, o.slots, out, column)
            column += o.slots.shape[1]
        ctx.operands = operands
        ctx.save_for_backward(*vectors, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, n = gradients[0].contiguous(), len(ctx.operands)
        found: list[Tensor | None] = [None]
        column = 0
        for o, x, w in zip(ctx.operands, ctx.saved_tensors[:n], ctx.saved_tensors[n:], strict=True):
            of_vectors, of_weights = compiled().products_backward(gradient, column, x, o.places, o.begins, w, o.slots)
            found += [of_vectors, None if w is None else of_weights]
            column += o.slots.shape[1]
        return tuple(found)


class _GatedProducts(torch.autograd.Function):
    """Products of one kind, normalised over the batch and added up by their gates.

    ``y_b = sum_m gate_m (x_bm - mean_m) (variance_m + eps_m)^(-1/2)``; every x is computed once and kept until the
    backward pass, 4 bytes each; those of vectors of few values are computed again instead.
    """

    @staticmethod
    def forward(ctx: Any, operand: Operand, vectors: Tensor, weights: Tensor | None, gates: Tensor,
                epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors and weights of ``operand``, ``gates`` [M] and ``epsilon`` [M]: → [B], and means and variances [M]."""
        if vectors.stride()[1:] != (vectors.shape[2], 1):
            vectors = vectors.contiguous()
        weights, gates = None if weights is None else weights.contiguous(), gates.contiguous()
        total, centre, variance, kept = compiled().gated_products(
            vectors, operand.places, weights, operand.slots, gates, epsilon)
        ctx.operand = operand
        ctx.save_for_backward(vectors, weights, gates, epsilon, centre, variance, kept)
        ctx.mark_non_differentiable(centre, variance)
        return total, centre, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        vectors, weights, *others = ctx.saved_tensors
        o = ctx.operand
        of_vectors, of_weights, of_gates = compiled().gated_products_backward(
            gradients[0].contiguous(), vectors, o.places, o.begins, weights, o.slots, *others)
        return None, of_vectors, None if weights is None else of_weights, of_gates, None


@dataclass(frozen=True)
class Interacting:
    """The interactions of one batch, which are computed when they are read.

    Attributes:
        products: which.
        fields: [B, F, D] of every embedding by name, or its rows.
    """

    products: Products
    fields: Mapping[str, Tensor | ByRow]

    def values(self) -> Tensor:
        """[B, M]."""
        return cast(Tensor, self.products(self.fields))

    def gated(self, gates: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """:meth:`Products.gated`, where compiled kernels can read the fields."""
        return self.products.gated(self.fields, gates, epsilon) if self.products.compiles(self.fields) else None
