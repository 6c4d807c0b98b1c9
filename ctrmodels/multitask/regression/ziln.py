"""Values that are often 0 and else spread over orders of magnitude: a zero-inflated log-normal distribution."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from ctrmodels.multitask.regression.base import Target, checked

LEAST_SPREAD = 0.01  # of that of the logarithms: a few equal values would have the likelihood grow without bound
WIDEST, HIGHEST = 5.0, 20.0  # of sigma and of the logarithm of the expected value, when scoring


class ZeroInflatedLogNormal(Target):
    """Three numbers per row: the logit of P(y > 0), and mean and spread of ``log y`` where y > 0.

    ``loss = BCE(1[y > 0], p) + 1[y > 0] (log sigma + (log y - mu)^2 / (2 sigma^2))`` and
    ``E[y] = p exp(mu + sigma^2 / 2)``. "A Deep Probabilistic Model for Customer Lifetime Value Prediction",
    arXiv:1912.07753, section 3.

    Attributes:
        mean, sd: of ``log y`` over the positive training values; the head gives mu and sigma in these units.
    """

    width: ClassVar[int] = 3
    mean: Tensor
    sd: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("sd", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def fit(self, values: np.ndarray, ids: np.ndarray | None = None) -> None:
        """See :class:`Target`."""
        values = checked(values)
        logs = np.log(values[values > 0])
        self.mean.fill_(float(logs.mean()))
        self.sd.fill_(float(logs.std()) or 1.0)

    def loss(self, output: Tensor, value: Tensor) -> Tensor:
        """See :class:`Target`; ``output`` [B, 3]."""
        logit, mu, raw = output.unbind(1)
        positive, sigma = value > 0, _spread(raw)
        # The logarithm of 0 has no part in the loss; its gradient must be finite all the same.
        log = (torch.where(positive, value, torch.ones_like(value)).log() - self.mean) / self.sd
        amount = sigma.log() + ((log - mu) / sigma).square() / 2
        happens = binary_cross_entropy_with_logits(logit, positive.to(logit.dtype), reduction="none")
        return happens + torch.where(positive, amount, torch.zeros_like(amount))

    def expected(self, output: Tensor) -> Tensor:
        """See :class:`Target`; ``output`` [B, 3]."""
        logit, mu, raw = output.unbind(1)
        sigma = (self.sd * _spread(raw)).clamp(max=WIDEST)
        return torch.sigmoid(logit) * torch.exp((self.mean + self.sd * mu + sigma.square() / 2).clamp(max=HIGHEST))


def _spread(raw: Tensor) -> Tensor:
    return softplus(raw) + LEAST_SPREAD
