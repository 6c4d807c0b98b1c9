"""Values such as dwell time: learned as logarithms, scored as expected values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctrmodels.multitask.regression.base import Target


class LogTarget(Target):
    """``z`` predicts ``(log(1 + y) - mean) / sd``.

    The standardised logarithm puts a loss in seconds on the scale of a cross-entropy. Turned back,
    ``exp(E[log(1 + y)])`` is too small by the spread of the residuals, so it is multiplied by Duan's (1983)
    smearing factor, the mean of ``exp(residual)``: ``E[y] = exp(mean + sd z) * smearing - 1``.

    Attributes:
        mean, sd: of ``log(1 + y)`` on the training rows of the objective's own space.
        smearing: mean of ``exp(residual)`` there; 1 until :meth:`fit_residuals`.
    """

    mean: Tensor
    sd: Tensor
    smearing: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("sd", 1.0), ("smearing", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def fit(self, values: np.ndarray, ids: np.ndarray | None = None) -> None:
        """See :class:`Target`; values may all be 0."""
        if not len(values) or values.min() < 0:
            raise ValueError("a regression target needs values, none of them negative")
        logs = np.log1p(values.astype(np.float64))
        self.mean.fill_(float(logs.mean()))
        self.sd.fill_(float(logs.std()) or 1.0)

    def fit_residuals(self, outputs: np.ndarray, values: np.ndarray) -> None:
        """Take the smearing factor from a trained head's outputs [n] on the training values [n]."""
        predicted = float(self.mean) + float(self.sd) * outputs.astype(np.float64)
        self.smearing.fill_(float(np.exp(np.log1p(values.astype(np.float64)) - predicted).mean()))

    def loss(self, output: Tensor, value: Tensor) -> Tensor:
        """See :class:`Target`: squared error of the standardised logarithm; ``output`` [B]."""
        return (output - (torch.log1p(value) - self.mean) / self.sd).square()

    def expected(self, output: Tensor) -> Tensor:
        """See :class:`Target`; ``output`` [B]."""
        return (torch.exp(self.mean + self.sd * output) * self.smearing - 1.0).clamp(min=0.0)
