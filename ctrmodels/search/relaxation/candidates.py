"""Rows in several widths at once: what a search makes of them before it knows what each width weighs.

Notation: U distinct rows of a batch, S id spaces, N candidates, which lie side by side in the first I of a row's W
values, D common width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ctrmodels.native import compiled
from ctrmodels.nn.rows import Touched
from ctrmodels.nn.table import Table, by_rows


@dataclass(frozen=True)
class Candidates:
    """Every candidate of the rows that a batch touches, times the linear map of its id space.

    None of it carries a gradient: :meth:`blend` gives one to what it was made of.

    Attributes:
        touched: the rows.
        takes: bool [S], the id spaces that have candidates; rows of others have their first D values.
        widths: of the candidates; their sum is I.
        x: [U, W], rows of the table.
        wide: [U, N * D], the candidates.
        mean, variance: [S, N * D], of ``wide`` by space; a row counts as often as the batch looks it up.
        looked_up: [S], look-ups.
    """

    touched: Touched
    takes: Tensor
    widths: tuple[int, ...]
    x: Tensor
    wide: Tensor
    mean: Tensor
    variance: Tensor
    looked_up: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, touched: Touched, table: Table, maps: Tensor, takes: Tensor, widths: tuple[int, ...]) -> Candidates:
        """Those of ``touched`` rows of ``table`` by ``maps`` [S, I, D]."""
        return cls(touched, takes, widths, *compiled().widen(
            table.weight, touched.rows, touched.segments.begins, touched.n, touched.cuts, takes, maps, widths))

    def blend(self, table: Table, maps: Tensor, weights: Tensor, eps: float) -> Tensor:
        """``sum_n w_n tanh(normalised candidate n)``, by the statistics of the batch: [U, D].

        Args:
            table, maps: that the candidates were made of; both have to be as they were then.
            weights: [U, N].
            eps: of the normalisation.
        """
        return cast(Tensor, _Blend.apply(table.weight, maps, weights, self, eps))


class _Blend(torch.autograd.Function):
    """One pass over the candidates, and two back."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, maps: Tensor, weights: Tensor, made: Candidates, eps: float) -> Tensor:
        ctx.made, ctx.eps, ctx.size = made, eps, table.shape
        ctx.save_for_backward(maps, weights)
        return cast(Tensor, compiled().blend(made.x, made.wide, made.touched.cuts, made.takes, made.mean, made.variance,
                                             weights, eps))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made: Candidates = ctx.made
        gradient, (maps, weights), touched = gradients[0].contiguous(), ctx.saved_tensors, made.touched
        of_table = of_maps = of_weights = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            of_rows, of_maps = compiled().widen_backward(
                gradient, made.x, made.wide, touched.segments.begins, touched.n, touched.cuts, made.takes, maps,
                made.widths, made.mean, made.variance, made.looked_up, weights, ctx.eps)
            of_table = by_rows(touched.segments, of_rows, ctx.size)
        if ctx.needs_input_grad[2]:
            of_weights = compiled().blend_weights_backward(
                gradient, made.wide, touched.cuts, made.takes, made.mean, made.variance, ctx.eps)
        return of_table, of_maps, of_weights, None, None
