"""Several objectives in one by the weight of a row: a positive that led to more counts for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ctrmodels.multitask.spaces import Array


@dataclass(frozen=True)
class WeightPolicy:
    """``w = 1 + sum_k lambda_k a_k`` for a positive of the primary objective, ``negative`` for the others.

    ``a_k`` is 1 where action k followed, or ``log(1 + value)`` of an amount; what is not known adds nothing. Weights
    are capped and divided by their mean over the training rows, once: divided by a batch's own mean, a weight would
    depend on the company it is in.

    Attributes:
        primary: column of the objective that is predicted.
        actions: column → lambda, 0 or more.
        amounts: columns that hold values.
        negative: weight of rows without the primary event.
        cap: largest weight before the division.
        mean: what weights are divided by.
    """

    primary: int
    actions: Mapping[int, float]
    amounts: frozenset[int] = frozenset()
    negative: float = 1.0
    cap: float = 50.0
    mean: float = 1.0

    def __call__(self, labels: Array) -> Array:
        """Weights [N] of rows with ``labels`` [N, K]; those whose primary label is unknown get that of a negative."""
        worth = 1.0 + 0.0 * _known(labels[:, self.primary])
        for k, weight in self.actions.items():
            action = _known(labels[:, k])
            worth = worth + weight * (_log1p(action) if k in self.amounts else action)
        worth = worth.clip(max=self.cap) if isinstance(worth, Tensor) else np.minimum(worth, self.cap)
        happened = _known(labels[:, self.primary])
        return (happened * worth + (1.0 - happened) * self.negative) / self.mean

    def fitted(self, labels: np.ndarray) -> WeightPolicy:
        """With the mean weight of the training rows [N, K] whose primary label is known.

        Raises:
            ValueError: an amount is negative.
        """
        for k in self.amounts & set(self.actions):
            if np.nanmin(labels[:, k], initial=0.0) < 0:
                raise ValueError("an amount that weighs rows must not be negative")
        raw = replace(self, mean=1.0)(labels[~np.isnan(labels[:, self.primary])])
        return replace(self, mean=float(raw.mean()))

    def log_odds_shift(self, labels: np.ndarray) -> float:
        """By how much the weights raise the log-odds that a model learns, from training rows [N, K].

        With a share s of rows that went further at weight w, c that did not, and n negatives, the optimum is
        ``(c + w s) / (c + w s + n)``: the odds are multiplied by a positive's mean weight over a negative's. Exact for
        every row if positives go further equally often everywhere, and on average otherwise.
        """
        weights, happened = self(labels), labels[:, self.primary] == 1
        return float(np.log(weights[happened].mean() * self.mean / self.negative))


def _known(label: Array) -> Array:
    """The label, 0 where it is unknown."""
    if isinstance(label, Tensor):
        return label.nan_to_num(0.0)
    return np.nan_to_num(label, nan=0.0)


def _log1p(values: Array) -> Array:
    return values.log1p() if isinstance(values, Tensor) else np.log1p(values)
