"""What the gates of a mixture do: which objective uses which expert, and whether the gates differ at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GateReport:
    """Use of E experts by K objectives over N rows.

    Attributes:
        mean, sd: [K, E] of the weights over the rows.
        entropy: [K] mean entropy of a row's weights divided by log E: 0 = one expert, 1 = all alike.
        divergence: [K, K] mean Jensen-Shannon divergence between two objectives' weights on the same row, in
            nats: 0 = the gates are one gate, log 2 = disjoint experts.
    """

    mean: np.ndarray
    sd: np.ndarray
    entropy: np.ndarray
    divergence: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """[K] number of experts that an objective uses over all rows: the exponential of the mean weights' entropy.

        1 = one expert for everybody, E = all of them, be it mixed on every row or each on rows of its own.
        """
        return np.exp(_entropy(self.mean))

    def values(self, objectives: Sequence[str]) -> dict[str, float]:
        """As flat numbers: ``entropy.OBJECTIVE``, ``used.OBJECTIVE``, ``experts``, and the mean ``divergence``."""
        found = {"experts": float(self.mean.shape[1])}
        for name, entropy, used in zip(objectives, self.entropy, self.used, strict=True):
            found |= {f"entropy.{name}": float(entropy), f"used.{name}": float(used)}
        if len(objectives) > 1:
            found["divergence"] = float(self.divergence[np.triu_indices(len(objectives), 1)].mean())
        return found


def gate_report(weights: np.ndarray) -> GateReport:
    """Summarise gate weights [N, K, E] that sum to 1 over E."""
    w = weights.astype(np.float64)
    k, experts = w.shape[1:]
    divergence = np.zeros((k, k))
    for i in range(k):
        for j in range(i):
            divergence[i, j] = divergence[j, i] = jensen_shannon(w[:, i], w[:, j]).mean()
    scale = np.log(experts) if experts > 1 else 1.0
    return GateReport(w.mean(axis=0), w.std(axis=0), _entropy(w).mean(axis=0) / scale, divergence)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in nats between distributions on the last axis; [..., E] → [...]."""
    return np.maximum(_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2, 0.0)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)
