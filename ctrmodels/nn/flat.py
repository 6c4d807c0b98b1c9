"""Fields laid side by side, as an MLP reads them, and the sum of their pairs on the way.

Notation: B rows, F fields, D width, N numeric values, W = F*D + N, rounded up by :func:`flat_width`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrmodels.native import compiled, kernels
from ctrmodels.nn.pair_sum import pair_inner_sum
from ctrmodels.nn.table import Lookup, PaddedLookup, Table, by_rows


class LaidOut(NamedTuple):
    """The fields of a batch in the forms that models read.

    Attributes:
        fields: float32 [B, F, D]; it may be empty if not asked for.
        flat: [B, W], fields and numeric values side by side; under autocast already in its type.
        pair_sum: [B], :func:`~ctrmodels.nn.pair_sum.pair_inner_sum` of the fields; empty if not asked for.
        penalty: scalar that the embedding adds to the loss, if it does.
    """

    fields: Tensor
    flat: Tensor
    pair_sum: Tensor
    penalty: Tensor | None = None


def flat_width(n_fields: int, dim: int, n_numeric: int) -> int:
    """W: a multiple of 8, so that every row begins where processors like to read; the columns added are zero."""
    return -(-(n_fields * dim + n_numeric) // 8) * 8


def appended_width(width: int, others: int) -> int:
    """Columns of :func:`appended`: again a multiple of 8."""
    return flat_width(1, width, others) if others else width


def appended(flat: Tensor, others: Sequence[Tensor]) -> Tensor:
    """``flat`` [B, W] with ``others`` [B, ..] behind it, in its type, and as many columns of zeros as it takes."""
    if not others:
        return flat
    columns = sum(part.shape[1] for part in others)
    filling = appended_width(flat.shape[1], columns) - flat.shape[1] - columns
    return torch.cat([flat, *(part.to(flat.dtype) for part in others), flat.new_zeros(flat.shape[0], filling)], 1)


def lay_out(fields: Tensor, numeric: Tensor, pairs: bool = False) -> LaidOut:
    """[B, F, D] and [B, N] in the forms that models read.

    Args:
        fields: embeddings.
        numeric: values that go behind them.
        pairs: whether the sum of the pairs is wanted, which costs little here.
    """
    width, dtype = flat_width(fields.shape[1], fields.shape[2], numeric.shape[1]), _dtype(fields)
    if _compiles(dtype, fields, numeric):
        flat, pair_sum = _LayOut.apply(
            fields.contiguous(), numeric.contiguous(), width, pairs, dtype == torch.bfloat16)
        return LaidOut(fields, flat, pair_sum)
    filling = numeric.new_zeros(numeric.shape[0], width - fields.shape[1] * fields.shape[2] - numeric.shape[1])
    flat = torch.cat([part.to(dtype) for part in (fields.flatten(1), numeric, filling)], 1)
    return LaidOut(fields, flat, pair_inner_sum(fields) if pairs else fields.new_empty(0))


def look_up(table: Table, lookup: Lookup, numeric: Tensor, pairs: bool = False) -> LaidOut:
    """:func:`lay_out` of ``table(lookup)``, in one pass over the rows where every bag holds a single one."""
    several = lookup.begins is not None or isinstance(lookup, PaddedLookup)
    bf16 = None if several or table.void else in_one_pass(lookup, numeric, table.weight)
    if bf16 is None:
        return lay_out(table(lookup), numeric, pairs)
    width = flat_width(lookup.shape[1], table.weight.shape[1], numeric.shape[1])
    return LaidOut(*_LookUp.apply(
        table.weight, lookup.index, lookup, table.mask, numeric.contiguous(), width, pairs, bf16, False, True))


def look_up_rows(rows: Tensor, lookup: Lookup, numeric: Tensor, pairs: bool = False, fields: bool = True,
                 others: int = 0) -> LaidOut:
    """:func:`look_up` where ``rows`` [U, D] are those of ``lookup.segments.rows``, computed for this batch.

    Without ``fields`` these may be empty: beside ``flat`` in bfloat16 they are most of what there is to write. With
    ``others``, only where the kernels apply, ``flat`` has room for as many numbers as :func:`appended` would add.
    """
    bf16 = in_one_pass(lookup, numeric, rows)
    if bf16 is None:
        return lay_out(lookup.means_of(rows), numeric, pairs)
    width = appended_width(flat_width(lookup.shape[1], rows.shape[1], numeric.shape[1]), others)
    return LaidOut(*_LookUp.apply(
        rows.contiguous(), lookup.places, lookup, None, numeric.contiguous(), width, pairs, bf16, True, fields))


def in_one_pass(lookup: Lookup, *tensors: Tensor) -> bool | None:
    """Whether the kernel that looks ``tensors`` up and lays them out writes bfloat16; ``None`` if it does not apply."""
    if lookup.begins is not None or isinstance(lookup, PaddedLookup):
        return None
    dtype = _dtype(tensors[0])
    return dtype == torch.bfloat16 if _compiles(dtype, *tensors) else None


def gathered(rows: Tensor, index: Tensor, numeric: Tensor, width: int, pairs: bool, bf16: bool,
             asked: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forms of :class:`LaidOut` that rows of a table have: [B, F, D], [B, W], [B]; and sums of fields [B, D].

    Fields that are not ``asked`` for are empty where they take writing.
    """
    fields, flat, pair_sum, total = compiled().gather_flat(rows, index, numeric, width, pairs, bf16, asked)
    # In float32 the fields lie in flat; autograd takes them for a tensor of their own: nothing writes to their columns.
    fields = fields.new_empty(0).set_(fields.untyped_storage(), fields.storage_offset(), fields.shape, fields.stride())
    return fields, flat, pair_sum, total


def _dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def _compiles(dtype: torch.dtype, *tensors: Tensor) -> bool:
    return (dtype in (torch.float32, torch.bfloat16) and all(t.dtype == torch.float32 for t in tensors)
            and kernels(*tensors) is not None)


def contiguous(gradients: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """As the kernels read them."""
    return [None if g is None else g.contiguous() for g in gradients]


class _LayOut(torch.autograd.Function):
    """Reads the fields once, and writes their gradient once, from flat's and the pairs' together."""

    @staticmethod
    def forward(ctx: Any, fields: Tensor, numeric: Tensor, width: int, pairs: bool,
                bf16: bool) -> tuple[Tensor, Tensor]:
        flat, pair_sum, total = compiled().flatten(fields, numeric, width, pairs, bf16)
        ctx.save_for_backward(fields, total)
        ctx.set_materialize_grads(False)
        return flat, pair_sum

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        fields, total = ctx.saved_tensors
        flat, pair_sum = contiguous(gradients)
        if flat is None:
            flat = fields.new_zeros(len(fields), fields[0].numel())
        if pair_sum is None:
            pair_sum = fields.new_empty(0)
        return compiled().flatten_backward(flat, pair_sum, fields, total), None, None, None, None


class _LookUp(torch.autograd.Function):
    """A table's rows in all forms; the gradient by rows comes from those of all forms in one pass.

    ``index`` is where ``lookup`` finds its rows in the table. The gradient is sparse unless they are all there is.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, lookup: Lookup, mask: Tensor | None, numeric: Tensor,
                width: int, pairs: bool, bf16: bool, every_row: bool, asked: bool) -> tuple[Tensor, Tensor, Tensor]:
        fields, flat, pair_sum, total = gathered(table, index, numeric, width, pairs, bf16, asked)
        ctx.lookup, ctx.mask, ctx.size, ctx.every_row = lookup, mask, table.shape, every_row
        ctx.save_for_backward(table if every_row else fields, total)
        ctx.set_materialize_grads(False)
        return fields, flat, pair_sum

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, total = ctx.saved_tensors
        fields, flat, pair_sum = contiguous(gradients)
        segments = ctx.lookup.segments
        values = compiled().gather_flat_backward(
            flat, fields, pair_sum, saved, total, segments.order, segments.begins)
        return values if ctx.every_row else by_rows(segments, values, ctx.size, ctx.mask), *[None] * 9
