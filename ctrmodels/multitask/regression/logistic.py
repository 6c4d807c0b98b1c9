"""Values as odds: weighted logistic regression."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ctrmodels.multitask.regression.base import Target, checked

HIGHEST = 20.0  # exp of it is half a billion times the mean value


class WeightedLogistic(Target):
    """``exp(z)`` is the value in units of its mean: positives are weighted by their value.

    "Deep Neural Networks for YouTube Recommendations", RecSys 2016, section 4.2, weighs watched rows by their watch
    time and the others by 1, by which the odds become ``E[y] / P(y = 0)``: near E[y] only where watching is rare. Here
    every row counts once as a negative as well, ``softplus(z) + y softplus(-z)``, and the odds are E[y] exactly,
    however frequent positives are and whatever the distribution of y.

    Attributes:
        mean: of the training values.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(1.0))

    def fit(self, values: np.ndarray, ids: np.ndarray | None = None) -> None:
        """See :class:`Target`."""
        self.mean.fill_(float(checked(values).mean()))

    def loss(self, output: Tensor, value: Tensor) -> Tensor:
        """See :class:`Target`; ``output`` [B]."""
        return softplus(output) + value / self.mean * softplus(-output)

    def expected(self, output: Tensor) -> Tensor:
        """See :class:`Target`; ``output`` [B]."""
        return self.mean * torch.exp(output.clamp(max=HIGHEST))
