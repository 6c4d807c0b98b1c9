"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.native import compiled, kernels
from ctrmodels.nn.dropout import Dropout


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Where products of ``x`` are computed in its own type, whatever the precision of the training."""
    kind = x.device.type
    # Entered only where it changes something: an exported graph would keep it as a graph of its own.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class _LinearReLU(torch.autograd.Function):
    """``relu(x W^T + b)`` without a pass of its own for bias or activation, in either direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias.to(x.dtype), "relu", [], "")
        ctx.save_for_backward(x, weight, y)
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight, y = ctx.saved_tensors
        gradient, bias = compiled().relu_backward(gradients[0].contiguous(), y)
        # x^T g is the form of this product that both BLAS libraries of torch compute fastest.
        return gradient @ weight if ctx.needs_input_grad[0] else None, (x.t() @ gradient).t(), bias


class LinearReLU(nn.Linear):
    """A linear map and a ReLU: [B, W] → [B, H]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, W] → [B, H]."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        fits = dtype in (torch.float32, torch.bfloat16) and x.dim() == 2 and x.shape[1] == self.in_features
        if fits and torch.is_grad_enabled() and kernels(x):
            return cast(Tensor, _LinearReLU.apply(x.to(dtype).contiguous(), self.weight.to(dtype), self.bias))
        return F.relu(super().forward(x))


class _Dot(torch.autograd.Function):
    """``x w + b`` for one output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return cast(Tensor, compiled().dot(x, weight.view(-1), bias).unsqueeze(1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].flatten().contiguous()
        of_x, of_weight = compiled().dot_backward(gradient, x, weight.view(-1))
        return of_x, of_weight.view_as(weight), gradient.sum(0, keepdim=True)


class Logits(nn.Linear):
    """The last linear map, computed in float32 whatever the precision of the layers before: [B, W] → [B, K]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, W] → float32 [B, K]."""
        if self.out_features == 1 and x.dim() == 2 and x.dtype in (torch.float32, torch.bfloat16) and kernels(x):
            return cast(Tensor, _Dot.apply(x.contiguous(), self.weight, self.bias))
        with full_precision(x):
            return super().forward(x.float())


class MLP(nn.Sequential):
    """Linear, ReLU, dropout for each width of ``hidden``; then a linear map to ``width_out`` if it is given.

    Args:
        width_in: width of the input.
        hidden: widths of the layers.
        dropout: after every activation.
        width_out: width of the output; ``None`` = that of the last layer.
        activation: makes an activation from its width; ReLU by default.

    Attributes:
        width: width of the output.
    """

    def __init__(self, width_in: int, hidden: Sequence[int], dropout: float = 0.0,
                 width_out: int | None = None, activation: Callable[[int], nn.Module] | None = None) -> None:
        layers: list[nn.Module] = []
        width = width_in
        for h in hidden:
            layers += [LinearReLU(width, h)] if activation is None else [nn.Linear(width, h), activation(h)]
            if dropout:
                layers.append(Dropout(dropout))
            width = h
        if width_out is not None:
            layers.append(Logits(width, width_out))
            width = width_out
        super().__init__(*layers)
        self.width = width
