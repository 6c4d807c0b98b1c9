"""An activation that adapts to its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels import ranks
from ctrmodels.nn.norm import BatchNorm


class Dice(nn.Module):
    """``f(s) = p s + (1 - p) alpha s`` with ``p = sigmoid((s - E[s]) / sqrt(Var[s] + eps))``.

    A PReLU whose corner lies at the mean of its input and is smooth. "Deep Interest Network for Click-Through Rate
    Prediction", KDD 2018, section 5.2, with the paper's eps of 1e-8.

    Args:
        width: H; every unit has statistics and an alpha of its own.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = BatchNorm(width, eps=1e-8)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, H] → [n, H]."""
        x = x.float()
        p = torch.sigmoid(self._normalised(x))
        return x * (p + (1 - p) * self.alpha)

    def _normalised(self, x: Tensor) -> Tensor:
        if self.training and self._few(x):
            return F.batch_norm(x, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
        return self.norm(x)

    @staticmethod
    def _few(x: Tensor) -> bool:
        """Whether there is no variance: almost all histories of a batch may be empty. All ranks agree on it."""
        return bool(ranks.mean(torch.tensor(float(len(x)), device=x.device)) * ranks.count() < 2)
