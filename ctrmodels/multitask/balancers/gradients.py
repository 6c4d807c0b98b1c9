"""Each loss's gradient of the parameters that the losses share.

Notation: K losses, P shared parameters, U rows of a table that the batch touches, D its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrmodels import ranks
from ctrmodels.training.optimisers import touched


@dataclass(frozen=True)
class _Stack:
    """K gradients of one parameter: ``values`` [K, ...], of a table [K, U, D] at its ``rows`` [U]."""

    parameter: nn.Parameter
    values: Tensor
    rows: Tensor | None

    def combined(self, weights: Tensor) -> Tensor:
        total = torch.tensordot(weights, self.values, 1)
        if self.rows is None:
            return total
        return torch.sparse_coo_tensor(self.rows.unsqueeze(0), total, self.parameter.shape, is_coalesced=True,
                                       check_invariants=False)


class SharedGradients:
    """K gradients of P parameters.

    Of a table they are those of the rows that the batch touches. The other rows' are zero for every loss, so that
    nothing is left out: inner products and combinations are those of the whole table. A loss that does not reach a
    parameter has the gradient zero. With several ranks they are the gradients of the whole batch, on every rank.

    Args:
        parameters: P.
        gradients: K lists of P gradients, ``None`` where a loss does not reach a parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Sequence[Tensor | None]]) -> None:
        stacks = [_stacked(p, column) for p, *column in zip(parameters, *gradients, strict=True)]
        self.stacks = _averaged([s for s in stacks if s is not None])

    def gram(self) -> Tensor:
        """Inner products of the K gradients, float64 [K, K]."""
        flat = [s.values.flatten(1) for s in self.stacks]
        return torch.stack([(g @ g.t()).double() for g in flat]).sum(0)

    def put(self, weights: Tensor) -> None:
        """Set every parameter's ``.grad`` to ``sum_k w_k g_k``, with ``weights`` [K]."""
        for stack in self.stacks:
            stack.parameter.grad = stack.combined(weights)


def backward_each(losses: Sequence[Tensor], shared: Sequence[nn.Parameter], keep_graph: bool) -> SharedGradients:
    """Go back from every loss by itself.

    Afterwards ``.grad`` of ``shared`` is empty, and that of all other parameters has the gradient of the plain sum.

    Args:
        losses: K scalars of one graph.
        shared: P parameters without ``.grad``.
        keep_graph: whether somebody else will go back through it.
    """
    found = []
    for number, loss in enumerate(losses, 1):
        loss.backward(retain_graph=keep_graph or number < len(losses))
        found.append([p.grad for p in shared])
        for parameter in shared:
            parameter.grad = None
    return SharedGradients(shared, found)


def norms(losses: Sequence[Tensor], layer: Sequence[nn.Parameter]) -> Tensor:
    """Length of every loss's gradient of ``layer``, [K]; the graph stays, and no ``.grad`` is touched."""
    found = [torch.autograd.grad(loss, list(layer), retain_graph=True, allow_unused=True) for loss in losses]
    return SharedGradients(layer, found).gram().diagonal().sqrt().float()


def _stacked(parameter: nn.Parameter, column: Sequence[Tensor | None]) -> _Stack | None:
    """``None`` if no loss reaches the parameter."""
    reached = [g for g in column if g is not None]
    if not reached:
        return None
    if not reached[0].is_sparse:
        return _Stack(parameter, torch.stack([torch.zeros_like(parameter) if g is None else g for g in column]), None)
    parts = [None if g is None else touched(g) for g in column]
    rows = torch.cat([part[0] for part in parts if part is not None]).unique()
    values = reached[0]._values().new_zeros(len(column), len(rows), *parameter.shape[1:])
    for part, value in zip(parts, values, strict=True):
        if part is not None:
            value.index_copy_(0, torch.searchsorted(rows, part[0]), part[1])
    return _Stack(parameter, values, rows)


def _averaged(stacks: Sequence[_Stack]) -> Sequence[_Stack]:
    """Means over the ranks."""
    if ranks.count() == 1:
        return stacks
    tensors = [s.values if s.rows is None else torch.sparse_coo_tensor(
        s.rows.unsqueeze(0), s.values.transpose(0, 1).contiguous(),
        (len(s.parameter), len(s.values), *s.parameter.shape[1:]), check_invariants=False) for s in stacks]
    means = ranks.averaged(tensors)
    return [_Stack(s.parameter, mean, None) if s.rows is None
            else _Stack(s.parameter, mean._values().transpose(0, 1).contiguous(), mean._indices()[0])
            for s, mean in zip(stacks, means, strict=True)]
