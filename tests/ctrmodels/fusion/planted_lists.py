"""Lists whose best fusion is known: value = click × purchase × price, and the scores are powers of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

TOP = 5
BEST_WEIGHTS = np.array([1.0, 2.0, 1.0])
"""Of a weighted product: the purchase score is planted as a square root, so its weight must be doubled."""


@dataclass(frozen=True)
class Lists:
    """``scores`` [lists * length, 3] and, per row, the expected ``value`` and probability of a ``click``."""

    scores: np.ndarray
    value: np.ndarray
    click: np.ndarray
    length: int

    @classmethod
    def generate(cls, lists: int, length: int = 30, seed: int = 0) -> Lists:
        rng = np.random.default_rng(seed)
        taste, noise, worth = rng.normal(size=(3, lists, length))
        click, buy, price = expit(1.2 * taste - 2), expit(-0.8 * taste + noise - 1.5), np.exp(0.8 * worth)
        scores = np.stack([click, 0.3 * np.sqrt(buy), price], axis=-1).reshape(-1, 3)
        return cls(scores, (click * buy * price).ravel(), click.ravel(), length)

    def take(self, first: int, last: int) -> Lists:
        rows = slice(first * self.length, last * self.length)
        return Lists(self.scores[rows], self.value[rows], self.click[rows], self.length)

    def value_at_top(self, fused: np.ndarray) -> np.ndarray:
        """[1] mean value of a list's top."""
        return np.array([self._top(fused, self.value)])

    def value_and_clicks_at_top(self, fused: np.ndarray) -> np.ndarray:
        """[2] the same and the mean clicks of a list's top."""
        return np.array([self._top(fused, self.value), self._top(fused, self.click)])

    def _top(self, fused: np.ndarray, what: np.ndarray) -> float:
        top = np.argpartition(-fused.reshape(-1, self.length), TOP, axis=1)[:, :TOP]
        return float(np.take_along_axis(what.reshape(-1, self.length), top, axis=1).sum(axis=1).mean())
