"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ctrmodels.native import compiled, kernels
from ctrmodels.nn.dropout import Dropout


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Where products of ``x`` are computed in its own type, whatever the precision of the training."""
    kind = x.device.type
    # Entered only where it changes something: an exported graph would keep it as a graph of its own.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class _Layers(torch.autograd.Function):
    """``relu(x W^T + b)``, layer after layer, then perhaps ``x w + b`` for one output, as a single node of the graph.

    Neither a bias nor an activation takes a pass over memory of its own, gradients that nobody else sees are
    overwritten, and those of layers that are not trained now are not computed. Nor are those of the first ``constant``
    columns of ``x``: what the gradient holds there is nobody's, and can be anything.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: bool, constant: int, *parameters: Tensor) -> Tensor:
        outputs, weights = [x], []
        layers = parameters[:-2] if head else parameters
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            weights.append(weight.to(x.dtype))
            outputs.append(torch.ops.mkldnn._linear_pointwise(
                outputs[-1], weights[-1], bias.to(x.dtype), "relu", [], ""))
        if head:
            weights.append(parameters[-2])
        ctx.head, ctx.constant = head, constant
        ctx.save_for_backward(*outputs, *weights)
        if not head:
            return outputs[-1]
        return cast(Tensor, compiled().dot(outputs[-1], parameters[-2].view(-1), parameters[-1]).unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        depth = len(ctx.saved_tensors) // 2
        outputs = ctx.saved_tensors[:-depth] if ctx.head else ctx.saved_tensors[:depth + 1]
        weights = ctx.saved_tensors[len(outputs):]
        found: list[Tensor | None] = []
        if ctx.head:
            above = gradients[0].flatten().contiguous()
            gradient, of_weight, of_bias = compiled().dot_relu_backward(above, outputs[-1], weights[-1].view(-1))
            found += [above.sum(0, keepdim=True), of_weight.view_as(weights[-1])]
        else:
            gradient = torch.empty_like(outputs[-1])
            of_bias = compiled().relu_backward(gradients[0].contiguous(), outputs[-1], gradient)
        for layer in reversed(range(len(outputs) - 1)):
            trained = ctx.needs_input_grad[3 + 2 * layer]  # not while something below the layers learns alone
            found += [of_bias, (gradient.t() @ outputs[layer]).float() if trained else None]
            if layer:
                gradient = gradient @ weights[layer]
                of_bias = compiled().relu_backward(gradient, outputs[layer], gradient)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient.new_empty(len(gradient), weights[0].shape[1])
            torch.mm(gradient, weights[0][:, ctx.constant:], out=of_x[:, ctx.constant:])
        return of_x, None, None, *reversed(found)


def computes(x: Tensor) -> torch.dtype | None:
    """The type in which the compiled layers compute ``x`` [B, W] in training, ``None`` if torch's own have to."""
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    fits = _fused(dtype) and x.dim() == 2 and torch.is_grad_enabled()
    return dtype if fits and kernels(x) else None


@cache
def _fused(dtype: torch.dtype) -> bool:
    """Whether this processor has a layer and its activation as one operation; in bfloat16 not every one does."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``relu(x W^T + b)``: [B, W] and [H, W] → [B, H]."""
    dtype = computes(x)
    if dtype and x.shape[1] == weight.shape[1]:
        return cast(Tensor, _Layers.apply(x.to(dtype).contiguous(), False, 0, weight, bias))
    return F.relu(F.linear(x, weight, bias))


class LinearReLU(nn.Linear):
    """A linear map and a ReLU: [B, W] → [B, H]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, W] → [B, H]."""
        return linear_relu(x, self.weight, self.bias)


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
        # In training these are one node; a dropout between the layers makes them several.
        self.whole = bool(hidden) and activation is None and not dropout and width_out in (None, 1)

    def forward(self, x: Tensor, constant: int = 0) -> Tensor:
        """[B, width_in] → [B, width]; float32 if it ends with the map to ``width_out``.

        Args:
            x: the input.
            constant: number of its first columns that nobody wants a gradient of.
        """
        dtype = computes(x) if self.whole else None
        if dtype is None or x.shape[1] != self[0].in_features:
            return cast(Tensor, super().forward(x))
        head = isinstance(self[-1], Logits)
        return cast(Tensor, _Layers.apply(x.to(dtype).contiguous(), head, constant, *(
            p for layer in self for p in (layer.weight, layer.bias))))
