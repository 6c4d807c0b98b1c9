"""Scores and lists that metrics are tried on, and the plain definition of a share of ordered pairs."""

from itertools import combinations

import numpy as np


def coarse_scores(rng: np.random.Generator, n: int) -> np.ndarray:
    """Scores with many ties, some of them far apart in magnitude."""
    return rng.integers(0, 6, n) / 5 + 0.1


def brute_share(labels: np.ndarray, scores: np.ndarray) -> float:
    """Concordant share of the pairs with different labels, by looking at every pair."""
    points = [0.5 if a == b else float((a > b) == (x > y))
              for (x, a), (y, b) in combinations(zip(labels, scores, strict=True), 2) if x != y]
    return float(np.mean(points)) if points else float("nan")


def uneven_lists(rng: np.random.Generator, n: int) -> np.ndarray:
    """Groups of very different sizes in mixed order, one longer than the counting limit, negative ids."""
    groups = np.concatenate([rng.integers(-5, 60, n), np.full(100, 1 << 60)])
    return rng.permutation(groups)
