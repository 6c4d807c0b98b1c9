"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ctrmodels.nn.dropout import Dropout


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
            layers += [nn.Linear(width, h), nn.ReLU() if activation is None else activation(h)]
            if dropout:
                layers.append(Dropout(dropout))
            width = h
        if width_out is not None:
            layers.append(nn.Linear(width, width_out))
            width = width_out
        super().__init__(*layers)
        self.width = width
