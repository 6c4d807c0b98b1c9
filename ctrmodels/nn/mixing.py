"""Mixtures of experts of one layer, computed as one wide layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctrmodels.native import compiled


class _Mixture(torch.autograd.Function):
    """See :func:`mixture`: one product of matrices, and one pass over what it gives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        wide = torch.cat([weight.transpose(0, 1).flatten(1), gate.flatten(0, 1).t()], 1).to(x.dtype)
        z = x @ wide
        mixed, gates = compiled().mix(z, bias, len(gate))
        ctx.save_for_backward(x, wide, z, bias, gates)
        return cast(Tensor, mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, wide, z, bias, gates = ctx.saved_tensors
        of_z, of_bias = compiled().mix_backward(gradients[0].contiguous(), z, bias, gates)
        of_weight, of_gate = (x.t() @ of_z).float().split([bias.numel(), z.shape[1] - bias.numel()], 1)
        return (of_z @ wide.t() if ctx.needs_input_grad[0] else None,
                of_weight.unflatten(1, bias.shape).transpose(0, 1), of_bias,
                of_gate.t().unflatten(0, gates.shape[1:]))


def mixture(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """``mixed_k = sum_e softmax(gate_k x)_e relu(x weight_e + bias_e)`` where the compiled layers compute.

    Experts and gates are columns of one matrix. ReLU, softmax and mixing take a pass over their outputs together, and
    so do their gradients: each mixing by itself would be B products of matrices whose calls cost more than they
    compute.

    Args:
        x: [B, W], in a type for which :func:`ctrmodels.nn.towers.computes` speaks.
        weight: [E, W, H].
        bias: [E, H].
        gate: [K, E, W].

    Returns:
        [K, B, H].
    """
    return cast(Tensor, _Mixture.apply(x.contiguous(), weight, bias, gate))
