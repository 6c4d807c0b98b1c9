"""Explicit interactions of fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctrmodels.archspec import Interaction


class InnerProducts(nn.Module):
    """``sum_d prod_s e_sd`` of chosen combinations of fields, all of one order p.

    The products of the first p - 1 fields, of which combinations have many in common, times all fields are one batched
    matrix product: of pairs it is the Gram matrix, so that 741 pairs of 39 fields cost one product instead of 741
    gathered copies.

    Args:
        combinations: M tuples of p fields.
        n_fields: F.
    """

    prefixes: Tensor
    cells: Tensor

    def __init__(self, combinations: Sequence[tuple[int, ...]], n_fields: int) -> None:
        super().__init__()
        heads = sorted({c[:-1] for c in combinations})
        place = {head: i for i, head in enumerate(heads)}
        if len(combinations[0]) == 2:
            heads, place = [], {(f,): f for f in range(n_fields)}
        prefixes = torch.tensor(heads, dtype=torch.long).view(len(heads), -1).mT if heads else torch.empty(0, 0).long()
        self.register_buffer("prefixes", prefixes, persistent=False)  # [p - 1, U]
        self.register_buffer("cells", torch.tensor([place[c[:-1]] * n_fields + c[-1] for c in combinations]),
                             persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        left = fields
        if self.prefixes.numel():
            left = fields.index_select(1, self.prefixes[0])
            for others in self.prefixes[1:]:
                left = left * fields.index_select(1, others)
        return torch.bmm(left, fields.transpose(1, 2)).flatten(1).index_select(1, self.cells)

    def flops(self, dim: int) -> int:
        """Operations per row, of the chosen ones alone."""
        return 2 * dim * len(self.cells) + dim * max(len(self.prefixes) - 1, 0) * self.prefixes.shape[-1]


class ScalarKernels(InnerProducts):
    """Inner products times a learned number each."""

    def __init__(self, combinations: Sequence[tuple[int, ...]], n_fields: int) -> None:
        super().__init__(combinations, n_fields)
        self.kernels = nn.Parameter(torch.ones(len(combinations)))

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        return super().forward(fields) * self.kernels


class VectorKernels(nn.Module):
    """``sum_d k_md prod_s e_sd`` of chosen combinations of fields, with a learned vector k_m each."""

    slots: Tensor

    def __init__(self, combinations: Sequence[tuple[int, ...]], dim: int) -> None:
        super().__init__()
        self.register_buffer("slots", torch.tensor(combinations).T, persistent=False)  # [p, M]
        self.kernels = nn.Parameter(torch.ones(len(combinations), dim))

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        product = fields.index_select(1, self.slots[0]) * self.kernels
        for others in self.slots[1:-1]:
            product = product * fields.index_select(1, others)
        return torch.einsum("bmd,bmd->bm", product, fields.index_select(1, self.slots[-1]))

    def flops(self, dim: int) -> int:
        """Operations per row."""
        return self.slots.numel() * dim + dim * self.slots.shape[1]


class OuterProducts(nn.Module):
    """``prod_s <e_s, u_s>`` of chosen combinations of fields: the outer product under a kernel of rank one.

    The learned vectors u_1 .. u_p belong to places in the combination, and all combinations share them.
    """

    slots: Tensor

    def __init__(self, combinations: Sequence[tuple[int, ...]], dim: int) -> None:
        super().__init__()
        self.register_buffer("slots", torch.tensor(combinations).T, persistent=False)  # [p, M]
        self.vectors = nn.Parameter(torch.randn(dim, len(self.slots)) * dim**-0.5)

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, D] → [B, M]."""
        projected = fields @ self.vectors  # [B, F, p]
        product = projected[:, :, 0].index_select(1, self.slots[0])
        for place in range(1, len(self.slots)):
            product = product * projected[:, :, place].index_select(1, self.slots[place])
        return product

    def flops(self, dim: int) -> int:
        """Operations per row."""
        return 2 * int(self.slots.max() + 1) * self.vectors.numel() + self.slots.numel()


class Products(nn.Module):
    """One number per interaction of an ArchSpec, of any operation and order, each on the embedding it names.

    Args:
        interactions: M of them, none a micronet.
        n_fields: F.
        dims: width of every embedding by name.
    """

    order: Tensor

    def __init__(self, interactions: Sequence[Interaction], n_fields: int, dims: Mapping[str, int]) -> None:
        super().__init__()
        kinds: dict[tuple[str, str, int], list[int]] = {}
        for place, i in enumerate(interactions):
            if not 2 <= len(set(i.fields)) == len(i.fields):
                raise ValueError(f"an interaction of the fields {i.fields}: it takes two or more different ones")
            kinds.setdefault((i.table, i.op, i.order), []).append(place)
        self.tables, self.dims = [table for table, _, _ in kinds], dims
        self.parts = nn.ModuleList()
        for (table, op, _), places in kinds.items():
            combinations = [interactions[p].fields for p in places]
            if op in ("inner", "scalar_kernel"):
                self.parts.append((InnerProducts if op == "inner" else ScalarKernels)(combinations, n_fields))
            elif op in ("vector_kernel", "outer"):
                kind = VectorKernels if op == "vector_kernel" else OuterProducts
                self.parts.append(kind(combinations, dims[table]))
            else:
                raise ValueError(f"{op} does not give one number")
        found = torch.tensor([p for places in kinds.values() for p in places], dtype=torch.long)
        self.register_buffer("order", found.argsort(), persistent=False)

    def __len__(self) -> int:
        return len(self.order)

    def forward(self, fields: Mapping[str, Tensor]) -> Tensor:
        """[B, F, D] of every embedding by name → [B, M], in the order of the interactions."""
        found = [part(fields[table]) for table, part in zip(self.tables, self.parts, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, 1).index_select(1, self.order)

    def flops(self) -> int:
        """Operations per row."""
        return sum(cast(InnerProducts, part).flops(self.dims[table])
                   for table, part in zip(self.tables, self.parts, strict=True))


class _PairInnerSum(torch.autograd.Function):
    """Forward and backward read the fields once each and write no product of their size."""

    @staticmethod
    def forward(ctx: Any, fields: Tensor) -> Tensor:
        total = fields.sum(1)  # [B, D]
        ctx.save_for_backward(fields, total)
        norm = torch.linalg.vector_norm(fields.flatten(1), dim=1)  # [B]
        return 0.5 * (total.square().sum(1) - norm.square())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        fields, total = ctx.saved_tensors
        g = gradients[0].view(-1, 1, 1)
        return torch.addcmul(g * total.unsqueeze(1), fields, g, value=-1)


def pair_inner_sum(fields: Tensor) -> Tensor:
    """Sum over all pairs of fields of their inner products, in time linear in the number of fields.

    ``sum_{i<j} <e_i, e_j> = (|sum_i e_i|^2 - sum_i |e_i|^2) / 2``; "Factorization Machines", ICDM 2010, lemma 3.1.
    [B, F, D] → [B].
    """
    return cast(Tensor, _PairInnerSum.apply(fields))


class CrossNet(nn.Module):
    """Cross layers ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l``, each of which raises the order of interactions by one.

    "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems", WWW
    2021, equation 1, with full matrices.

    Args:
        width: W.
        layers: number of cross layers.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, W] → [B, W]."""
        crossed = x
        for layer in self.layers:
            crossed = torch.addcmul(crossed, x, layer(crossed).to(x.dtype))
        return crossed
